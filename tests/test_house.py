"""The house keeps its measure: short functions and files, no import that runs back up, one meaning for a name."""

from .house import classes_defined_twice, file_lengths, function_lengths, upward_imports


def test_no_function_is_over_40_lines():
    assert not {name: lines for name, lines in function_lengths().items() if lines > 40}


def test_no_file_is_over_300_lines():
    assert not {name: lines for name, lines in file_lengths().items() if lines > 300}


def test_no_import_runs_back_up():
    assert not upward_imports()


def test_no_class_name_means_two_things():
    assert not classes_defined_twice()
