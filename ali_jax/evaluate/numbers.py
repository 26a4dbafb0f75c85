"""What a number of an evaluator is, declared once: reports, tables and intervals follow from it.

An evaluator declares its numbers above its function (`declare.evaluator`); `registry` looks them up.
"""

from typing import NamedTuple


class Number(NamedTuple):
    """A number that an evaluator reports, and how it is shown."""

    name: str  # "n_..." is a count of rows, samples or pairs that other numbers are from
    meaning: str  # one line of plain text
    share_of: str = ""  # the count that it is a share of, as "n_test": it gets Wilson's interval
    control: bool = False  # the same whatever the trained weights
    headline: str = ""  # the title under which it may stand at the top of a report
    scale: tuple[str, str] | None = None  # what a headline is read against: (name, as in "for raw pixels")

    @property
    def is_count(self) -> bool:
        """Whether it counts what the other numbers are from; reports show it in the caption."""
        return self.name.startswith("n_")


def count(name: str, meaning: str) -> Number:
    """Declare the count of rows, samples or pairs that an evaluator's numbers are from."""
    return Number(name, meaning, control=True)


def with_interval(number: Number, method: str) -> tuple[Number, Number, Number]:
    """Declare a number that is reported together with the ends of its 95 % interval, _low and _high."""
    meaning = f"95 % interval of {number.name}: {method}"
    return number, Number(f"{number.name}_low", meaning), Number(f"{number.name}_high", meaning)


N_TEST = count("n_test", "test rows used")
N_TRAIN_LABELLED = count("n_train_labelled", "labelled train rows used")
N_TEST_LABELLED = count("n_test_labelled", "labelled test rows used")
N_FEATURES = count("n_features", "length of the features, by which networks of one name are told apart")
N_SAMPLES = count("n_samples", "samples drawn")
