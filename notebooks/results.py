"""The long runs behind the chapters with stored results: several seeds, long training; one small result file each.

Each run executes its chapter, up to and with the cell tagged `save-results`, with other parameters. Runs whose file is
there are skipped, so an interrupted `make results` is taken up where it was.
"""

import argparse
import os
import sys

from rerun import HERE, check_parameters, find_chapter
from sweep import run_points

ABLATIONS = {"epochs": 2, "only": "", "n_test": 2000}
COST = {"attractors": "attractor 2x8; attractor 4x8; attractor 8x16; attractor 16x16",
        "shared": "shared 8x16; shared 8x32",
        "blocks": "transformer block 32; transformer block 64", "wide": "transformer block 128", "widest": "transformer block 256",
        "bare": "bare attention 32; bare attention 64; bare attention 128; bare attention 256; Hopfield layer 256",
        "energy": "energy transformer 64"}
COST_HIDDEN = {**COST, "small-shared": "shared 4x16"}
COST_NOISE = {**COST, "bare": "bare attention 32; bare attention 64; bare attention 128", "shared": "shared 8x16",
              # for noise, these are better at half the learning rate that they have for hidden tokens:
              "half": "bare attention 256; Hopfield layer 256", "half-shared": "shared 8x32"}
RUNS = [  # chapter, name of the run, parameters
    *[(chapter, f"learning-rate-x{factor}", {"epochs": epochs, "lr_factor": factor, "n_validation": 5000})
      for chapter, epochs in (("04_masked_prediction", 15), ("05_denoising", 10)) for factor in (0.5, 1.0, 2.0)],
    *[("12_ablations", f"learning-rate-x{factor}", {
        **ABLATIONS, "n_train": 10000, "n_images": 100, "lr_factor": factor, "n_validation": 5000, "train_on": "hidden clean",
        "only": {0.25: "beta 20; linear attention; 16 heads of rank 16", 8.0: "beta 0; beta 0.2"}.get(factor, "")})
      for factor in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)],
    ("12_ablations", "long-seed0", {"n_train": 60000, "epochs": 3, "n_test": 5000, "n_images": 200,
                                    "only": "reference; beta 0", "train_on": "hidden"}),
    ("08_contrastive_divergence", "more-sweeps", {"own_steps": [1], "gibbs_sweeps": [1, 3], "n_chains": 250, "example_numbers": [],
                                                  "n_states": 200, "n_sweeps": 200}),
    *[("08_contrastive_divergence", f"learning-rate-x{factor}", {"lr_factor": factor, "n_images": 2500, "example_numbers": [],
                                                                 "n_states": 50, "n_steps": 20, "n_sweeps": 1})
      for factor in (0.33, 1.0, 3.0)],
    *[("13_memories_that_stay", f"noise-seed{seed}", {"seed": seed, "n_train": 10000, "epochs": 1, "free_epochs": 1, "n_test": 100,
                                                      "noise_images": 10000}) for seed in (0, 1, 2)],
    *[("14_accuracy_for_its_cost", f"{prefix}learning-rate-x{factor}-{group}", {
        "task": task, "only": only, "n_train": 60000, "epochs": epochs, "lr_factor": factor, "n_validation": 5000, "max_stages": 1})
      for task, prefix, epochs, groups in (("hidden", "", 6, COST_HIDDEN), ("noise", "noise-", 3, COST))
      for factor in (0.5, 1.0, 2.0) for group, only in groups.items()],
    *[("14_accuracy_for_its_cost", f"{task}-seed{seed}-{group}", {
        "task": task, "seed": seed, "only": only, "n_train": 60000, "epochs": 10, "n_test": 10000,
        "lr_factor": 0.5 if group.startswith("half") else 1.0})
      for task, groups in (("hidden", {**COST_HIDDEN, "cascades": "blocks 32; blocks 64"}), ("noise", COST_NOISE))
      for seed in (0, 1, 2) for group, only in groups.items()],
    *[("14_accuracy_for_its_cost", f"long-seed0-{group}", {"only": only, "n_train": 60000, "epochs": 30, "n_test": 10000, "max_stages": 2})
      for group, only in {"attractors": "attractor 8x16; attractor 16x16", "shared": "shared 8x32",
                          "blocks": "transformer block 64; transformer block 128"}.items()],
    ("14_accuracy_for_its_cost", "patches4-seed0", {
        "task": "noise", "patch_size": 4, "n_train": 60000, "epochs": 10, "n_test": 10000, "max_stages": 1,
        "only": "attractor 4x8; attractor 8x16; transformer block 32; transformer block 64"}),
    *[(chapter, f"seed{seed}", {"seed": seed, **parameters}) for chapter, parameters in [
        ("04_masked_prediction", {"epochs": 15}),
        ("05_denoising", {"epochs": 10}),
        ("08_contrastive_divergence", {"example_numbers": [10, 100, 1000], "n_states": 200, "n_sweeps": 200}),
        ("10_basins", {"n_max": 60000, "every": 1}),
        ("12_ablations", {**ABLATIONS, "n_train": 20000, "n_test": 5000, "n_images": 200, "n_steps": 200}),
        ("13_memories_that_stay", {"n_train": 60000, "epochs": 15, "free_epochs": 6, "n_test": 1000, "n_images": 200,
                                   "n_batches": 80, "scan_images": 10000}),
    ] for seed in (0, 1, 2)],
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python notebooks/results.py", description=__doc__.splitlines()[0])
    parser.add_argument("chapter", nargs="?", default="", help="only the runs of this chapter, for example 04")
    parser.add_argument("--force", action="store_true", help="run again what is there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, sharing the cores (default: all cores)")
    arguments = parser.parse_args()
    chapters = sorted({run[0] for run in RUNS})
    if not any(chapter.startswith(arguments.chapter) for chapter in chapters):
        parser.error(f"chapter must be the beginning of one of {', '.join(chapters)}, got {arguments.chapter!r}")
    points = [(f"{chapter}/{name}", HERE / "results" / chapter / f"{name}.json", find_chapter(chapter), parameters)
              for chapter, name, parameters in RUNS if chapter.startswith(arguments.chapter)]
    for _, _, path, parameters in points:
        check_parameters(path, parameters)
    wanted = [point for point in points if arguments.force or not point[1].exists()]
    print(f"{len(wanted)} of {len(points)} runs to do, {arguments.jobs} at a time; the others are stored (--force runs them again)",
          flush=True)
    if failed := run_points(wanted, jobs=arguments.jobs):
        sys.exit(f"error: failed: {', '.join(failed)}; the others are saved")


if __name__ == "__main__":
    main()
