"""Build the JSON Schema of experiment files from all plug-ins' configs, so that editors complete and check YAML."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from experiments.config.run import RankerRun, TextRun
from experiments.config.search import SearchConfig
from recpeft import plugins
from recpeft.config import Config

_FOLDERS = {
    "SourceConfig": ("datamodules", "source"),
    "SplitConfig": ("datamodules.splits", "kind"),
    "AdapterConfig": ("adapters", "method"),
    "FormulationConfig": ("lightning_modules", "name"),
    "LossConfig": ("lightning_modules.losses", "name"),
    "RankerConfig": ("rankers", "name"),
    "DiversifyConfig": ("rankers.diversify", "method"),
    "TrackerConfig": ("experiments.trackers", "name"),
}
"""Base class of a folder's configs -> (folder, key that names a plug-in)."""

_SHORT = ("SplitConfig", "GroupConfig", "CandidatesConfig", "TrackerConfig")
"""Configs that an experiment file may abbreviate to a name."""

_OTHER_SPELLINGS = ("Filter", "TwoStageFirst")
"""Configs that files write in a shorter form, such as {k_core: 5}."""

_OWN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$"
"""Pattern of a user's own module, whose options the schema cannot know."""


def experiment_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of experiment files.

    A section that names a plug-in accepts only that plug-in's options. ``recpeft plan``, not the schema, checks whether
    values are compatible.
    """
    found = {base: _configs(folder) for base, (folder, _) in _FOLDERS.items()}
    models: list[type[Config]] = [TextRun, RankerRun, SearchConfig]
    models += [cls for classes in found.values() for cls in classes.values()]
    references, whole = models_json_schema([(model, "validation") for model in dict.fromkeys(models)])
    definitions: dict[str, Any] = whole["$defs"]

    def definition(cls: type[Config]) -> str:
        return str(references[cls, "validation"]["$ref"]).rsplit("/", 1)[1]

    text, anything = {"type": "string"}, {"type": "object"}
    for base, (_, key) in _FOLDERS.items():
        for name, cls in found[base].items():
            named = definitions[definition(cls)]
            named["properties"][key] = {"const": name, "description": named.get("description", name)}
            named["required"] = sorted({*named.get("required", ()), key})
        own = {"type": "object", "required": [key], "properties": {key: {"type": "string", "pattern": _OWN}}}
        choices = [{"$ref": f"#/$defs/{definition(cls)}"} for cls in found[base].values()]
        definitions[base] = {"anyOf": [*choices, own]}
    for name, schema in list(definitions.items()):
        if name in _SHORT:
            definitions[name] = {"anyOf": [text, schema]}
        elif name in _OTHER_SPELLINGS:
            definitions[name] = anything
    run, of_rankers = (definitions.pop(definition(cls)) for cls in (TextRun, RankerRun))
    cells = {"type": ["array", "null"], "items": anything}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "recpeft experiment",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **of_rankers["properties"],
            **run["properties"],
            "grid": {"type": ["object", "null"], "additionalProperties": {"type": "array", "minItems": 1}},
            "include": cells,
            "exclude": cells,
            "variants": {"type": ["object", "null"], "additionalProperties": anything},
            "references": {"type": ["array", "null"], "items": {"anyOf": [text, {"$ref": "#/$defs/RankerConfig"}]}},
            "seeds": {"type": ["array", "null"], "items": {"type": "integer", "minimum": 0}},
            "search": {"anyOf": [{"$ref": f"#/$defs/{definition(SearchConfig)}"}, {"type": "null"}]},
            "extends": {"type": "string", "description": "Path of an experiment file that this one changes."},
        },
        "$defs": definitions,
    }


def _configs(folder: str) -> dict[str, type[Config]]:
    return {name: plugins.config_class(folder, name) for name in plugins.names(folder)}
