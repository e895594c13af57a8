import json

import pytest

from attractor_book.results import check, finding, load_results, results_folder, save_results


def test_saves_rows_with_provenance_and_loads_them_with_the_run_s_parameters(tmp_path):
    for seed in (0, 1):
        save_results(
            tmp_path / f"seed{seed}.json",
            [{"k": k, "error": 0.1 * k + seed} for k in (1, 4)],
            {"seed": seed, "device": "cpu"},
            12.345,
        )
    rows, provenance = load_results(tmp_path)
    assert rows.set_index(["seed", "k"])["error"].to_dict() == {
        (0, 1): 0.1,
        (0, 4): 0.4,
        (1, 1): 1.1,
        (1, 4): 1.4,
    }
    assert provenance["file"].tolist() == ["seed0.json", "seed1.json"] and provenance[
        "seconds"
    ].tolist() == [12.3, 12.3]
    assert {"date", "threads", "torch", "seed"} <= set(provenance.columns)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    save_results(file, [{"k": 1}], {}, 1.0)
    with pytest.raises(TypeError):
        save_results(file, [{"k": object()}], {}, 1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and json.loads(file.read_text())[
        "rows"
    ] == [{"k": 1}]


def test_missing_results_are_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected result files"):
        load_results(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="expected a folder results/07_nothing beside the notebooks"
    ):
        results_folder("07_nothing")


def test_check_must_hold_and_finding_need_not(capsys):
    finding("one is two", 1 == 2)
    check("one is one", 1 == 1)
    with pytest.raises(AssertionError, match="one is three"):
        check("one is three", 1 == 3)
    assert capsys.readouterr().out == "one is two: False\none is one: True\none is three: False\n"
