"""What of the prompt does the model live on?

python -m experiments.ablations.prompt

``base`` has titles, years and categories. The variants lack something: categories; all but titles; all but categories;
the words of titles, replaced by numbers; all but these numbers; the match of title and film; the order of the history;
all of the history but one film. Nine runs with texts up to twice as long as the quickstart's, whose runs take about two
and a half minutes each on two CPU cores.

Compare each row with ``base``. What ``anonymous_titles`` loses came from the words of titles. If ``shuffled_titles``
loses as much, it came from what they say about the film; if not, from telling films apart. If ``shuffled_history`` is
as good as ``base``, the order was not used. Costs fall with the length of the text.
"""

from __future__ import annotations

from pathlib import Path

from experiments import load_results, load_runs, run_all
from experiments.ablations._script import script
from recpeft.terminal import say

YEAR = "{% if year %} ({{ year }}){% endif %}"
CATEGORIES = "{{ categories | join(' ') }}"


def prompt(base: Path, overrides: list[str], out: Path, workers: int | None) -> int:
    study = {
        "extends": base,
        "study": "prompt",
        "references": ["popularity", "ease"],
        # Long enough that no history loses a film because the other films' texts are long.
        "prompt": {
            "item": f"{{{{ title }}}}{YEAR}, {CATEGORIES}",
            "max_user_tokens": 160,
            "max_item_tokens": 24,
        },
        "grid": {},
        "include": [],
        "variants": {
            "no_categories": {"prompt.item": f"{{{{ title }}}}{YEAR}"},
            "titles_only": {"prompt.item": "{{ title }}"},
            "categories_only": {"prompt.item": CATEGORIES},
            "anonymous_titles": {"prompt.ablation": "anonymous_titles"},
            "numbers_only": {"prompt.ablation": "anonymous_titles", "prompt.item": "{{ title }}"},
            "shuffled_titles": {"prompt.ablation": "shuffled_titles"},
            "shuffled_history": {"prompt.ablation": "shuffled_history"},
            "last_film_only": {"prompt.history": 1},
        },
    }
    runs = load_runs(study, overrides)
    failed = run_all(runs, out, workers)
    columns = ("method", "variant", "seed", runs[0].evaluation.monitored, "tokens_seen", "train_seconds")
    say(str(load_results(out / runs[0].study, columns=columns).select(columns)))
    return failed


if __name__ == "__main__":
    script(prompt)
