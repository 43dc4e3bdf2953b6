"""Write the tutorial's three CSV files: people, recipes and ratings, all made up.

    python docs/tutorial/make_recipes.py docs/tutorial

A recipe belongs to one of eight kitchens, and its title says so by the name of a dish: a risotto, a dal, a taco. A
person has a favourite kitchen, and most recipes they cook come from it. Nothing else is planted: ids are dealt
out at random, some recipes are cooked more often than others, and ratings are high where the kitchen is the favourite.
"""

import csv
import random
import sys
from datetime import datetime, timedelta
from pathlib import Path

NUM_PEOPLE = 240
NUM_RECIPES = 320
RATINGS_PER_PERSON = 14
LOYALTY = 0.85
"""Chance that a recipe is taken from the favourite kitchen, and not from anywhere."""

KITCHENS = {
    "Italian": "risotto gnocchi lasagne minestrone polenta focaccia ravioli saltimbocca",
    "Indian": "dal biryani korma samosa vindaloo pakora saag dosa",
    "Mexican": "taco enchilada quesadilla pozole tamale burrito tostada mole",
    "Japanese": "udon ramen okonomiyaki tempura donburi miso-soup gyoza sushi",
    "French": "quiche ratatouille cassoulet crêpe bouillabaisse gratin galette soufflé",
    "Greek": "moussaka souvlaki spanakopita dolmades stifado tzatziki pastitsio gyros",
    "Thai": "pad-thai tom-yum larb massaman satay som-tam khao-soi panang",
    "German": "spätzle goulash schnitzel sauerbraten rösti dumplings bratwurst flammkuchen",
}
INGREDIENTS = [
    "Spinach",
    "Pumpkin",
    "Chicken",
    "Mushroom",
    "Lentil",
    "Salmon",
    "Tofu",
    "Beef",
    "Aubergine",
    "Leek",
    "Prawn",
    "Chickpea",
    "Pork",
    "Carrot",
]
AGES = ["18-34", "35-54", "55+"]


def main(folder: Path) -> None:
    draw = random.Random(7)
    kitchens = list(KITCHENS)

    kitchen_of = [kitchens[number % len(kitchens)] for number in range(NUM_RECIPES)]
    draw.shuffle(kitchen_of)
    titles: list[str] = []
    while len(titles) < NUM_RECIPES:
        dish = draw.choice(KITCHENS[kitchen_of[len(titles)]].split()).replace("-", " ")
        title = f"{draw.choice(INGREDIENTS)} {dish}"
        if title not in titles:
            titles.append(title)
    recipes = [(f"r{number:03d}", titles[number], kitchen_of[number]) for number in range(NUM_RECIPES)]
    fame = [draw.paretovariate(3) for _ in recipes]  # some recipes are known better than others

    people, ratings = [], []
    for number in range(NUM_PEOPLE):
        person, favourite = f"p{number:03d}", draw.choice(kitchens)
        people.append((person, draw.choice(AGES)))
        cooked: list[int] = []
        while len(cooked) < RATINGS_PER_PERSON:
            loyal = draw.random() < LOYALTY
            choice = draw.choices(range(NUM_RECIPES), fame)[0]
            if choice not in cooked and (not loyal or kitchen_of[choice] == favourite):
                cooked.append(choice)
        time = datetime(2025, 1, 1) + timedelta(days=draw.randrange(60))
        for choice in cooked:
            time += timedelta(days=draw.randrange(1, 15), minutes=draw.randrange(600, 1300))
            rating = draw.choice([4, 5, 5]) if kitchen_of[choice] == favourite else draw.choice([2, 3, 4, 5])
            ratings.append((person, recipes[choice][0], rating, time.strftime("%Y-%m-%dT%H:%M:%S")))
    ratings.sort(key=lambda row: row[3])

    write(folder / "people.csv", ("person", "age_group"), people)
    write(folder / "recipes.csv", ("recipe", "title", "kitchen"), recipes)
    write(folder / "ratings.csv", ("person", "recipe", "rating", "cooked_at"), ratings)


def write(path: Path, header: tuple[str, ...], rows: list) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
