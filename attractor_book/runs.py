"""The long runs behind the chapters with stored results: several seeds, long training; one file
each.
"""

ABLATIONS = {"epochs": 2, "only": "", "n_test": 2000}
ONE_CHANGE = (
    "reference; bias; beta 0; beta 0.2; beta 5; beta 20; j i takes part; linear attention; "
    "J symmetric; J by offset; J shared, positions; 2 full heads; 1 head of rank 16; "
    "4 heads of rank 16; 16 heads of rank 16"
)
UNIFORM_HEADS = "16 heads, beta 0"
LINEAR_MAPS = "linear map; linear map, own token"
ABLATIONS_OF_SEEDS = {
    **ABLATIONS,
    "n_train": 20000,
    "n_test": 5000,
    "n_images": 200,
    "n_steps": 200,
}
COST = {
    "attractors": "attractor 2x8; attractor 4x8; attractor 8x16; attractor 16x16",
    "shared": "shared 8x16; shared 8x32",
    "blocks": "transformer block 32; transformer block 64",
    "wide": "transformer block 128",
    "widest": "transformer block 256",
    "bare": "bare attention 32; bare attention 64; bare attention 128; bare attention 256; "
    "Hopfield layer 256",
    "energy": "energy transformer 64",
}
COST_HIDDEN = {**COST, "small-shared": "shared 4x16"}
COST_NOISE = {
    **COST,
    "bare": "bare attention 32; bare attention 64; bare attention 128",
    "shared": "shared 8x16",
    # for noise, these are better at half the learning rate that they have for hidden tokens:
    "half": "bare attention 256; Hopfield layer 256",
    "half-shared": "shared 8x32",
}
SINGLE = "bare attention 128; block 64, last norm; block 32; block 64"
TWO_DEEP = "stack 2 x 64; looped 2 x 64"
DEAR = "block 128; stack 4 x 64"
LOCAL = "tokens alone; tokens alone, afresh; hidden spins; hidden spins, afresh"
CONTEST = {"n_train": 55000, "n_test": 10000}
DATA = ("MNIST", "FashionMNIST")
HIDDEN, CLOTHES = ((data, "hidden") for data in DATA)
MAIN = ("hidden 16x8, decay", 12, 1.0), ("stack 2 x 64", 60, 2.0), ("block 64", 60, 2.0)
NOISY = ("hidden 16x8, decay", 8, 0.5), ("stack 2 x 64", 60, 2.0), ("block 64", 60, 2.0)
WIDTHS = ("block 32", 60, 4.0), ("looped 2 x 64", 60, 2.0), ("block 256, decay", 30, 1.0)
DECIDING = (
    ("stack 4 x 64", 30, 4.0),
    ("block 128, decay", 60, 2.0),
    ("hidden 32x8, decay", 8, 1.0),
)
ON_CLOTHES = (
    ("stack 4 x 64", 60, 2.0),
    ("hidden 32x8, decay", 8, 1.0),
    ("block 256, decay", 30, 1.0),
)
RECURRENT = (  # rates fall with the number of heads: at that of a cascade sixteen blow up
    ("recurrent 16x8, decay", 12, 0.5),
    ("recurrent 32x8, decay", 8, 0.25),
    ("recurrent 8x8, decay", 12, 1.0),
    ("recurrent 8x8, shared", 12, 0.5),
)
LOOPED = ("looped 2 x 128, decay", 60, 2.0)
NOISE_RATES = (  # who, epochs (of a stage), times the learning rate
    ("block 64; stack 2 x 64", "end-to-end", 8, (0.5, 1.0, 2.0, 4.0)),
    ("stack 4 x 64", "stack4x64", 8, (0.5, 1.0, 2.0, 4.0)),
    ("block 128, decay", "block128-decay", 8, (1.0, 2.0)),
    ("looped 2 x 64", "looped2x64", 8, (1.0, 2.0, 4.0)),
    ("hidden 16x8", "hidden16x8", 4, (0.5,)),
    ("hidden 16x8, decay", "hidden16x8-decay", 4, (0.25, 0.5, 1.0)),
)
CONVERGED = [  # data, task, seed, who, epochs (of a stage), times the learning rate
    *[(*HIDDEN, seed, *entrant) for seed in (0, 1, 2) for entrant in MAIN],
    *[(*CLOTHES, 0, *entrant) for entrant in (*MAIN, ("block 128", 60, 2.0))],
    *[(data, "noise", 0, *entrant) for data in DATA for entrant in NOISY],
    (*HIDDEN, 0, "hidden 16x8", 12, 1.0),
    (*HIDDEN, 0, "hidden 8x8", 12, 1.0),
    (*HIDDEN, 0, "hidden 32x8", 8, 1.0),
    (*HIDDEN, 0, "cascade 16x8", 12, 1.0),
    (*HIDDEN, 0, "shared 8x8", 12, 1.0),
    (*HIDDEN, 0, "hidden 4x8", 12, 1.0),
    (*HIDDEN, 0, "hidden 32x8, decay", 8, 1.0),
    *[(*HIDDEN, 0, "hidden 16x8, decay", epochs, 1.0) for epochs in (3, 6)],
    *[(*HIDDEN, 0, name, 15, 2.0) for name in ("stack 2 x 64", "block 64")],
    *[(*images, 0, "stack 4 x 64", 30, 1.0) for images in (HIDDEN, CLOTHES)],
    (*HIDDEN, 0, "stack 2 x 64", 120, 2.0),
    (*HIDDEN, 0, "block 128, decay", 60, 2.0),
    *[(*HIDDEN, seed, *entrant) for seed in (1, 2) for entrant in DECIDING],
    *[(*HIDDEN, 0, *entrant) for entrant in WIDTHS],
    ("MNIST", "noise", 0, "stack 4 x 64", 30, 2.0),
    *[(data, "noise", 0, "stack 4 x 64", 60, 2.0) for data in DATA],
    *[(*CLOTHES, 0, *entrant) for entrant in ON_CLOTHES],
    *[(*HIDDEN, seed, "block 256, decay", 60, 1.0) for seed in (0, 1, 2)],
    *[(*HIDDEN, seed, "stack 4 x 64", 60, 2.0) for seed in (1, 2)],
    *[(*HIDDEN, seed, "looped 2 x 64", 60, 2.0) for seed in (1, 2)],
    (*CLOTHES, 0, "looped 2 x 64", 60, 2.0),
    *[(data, "noise", 0, "looped 2 x 64", 60, 2.0) for data in DATA],
    *[(*HIDDEN, 0, *entrant) for entrant in (LOOPED, ("looped 4 x 64", 60, 2.0))],
    *[(*HIDDEN, 0, *entrant) for entrant in RECURRENT],
    *[(*HIDDEN, seed, *entrant) for seed in (1, 2) for entrant in RECURRENT[:2]],
    *[(*CLOTHES, 0, *entrant) for entrant in RECURRENT[:2]],
    *[(data, "noise", 0, "recurrent 16x8, decay", 8, 0.5) for data in DATA],
    (*HIDDEN, 1, *LOOPED),
    ("MNIST", "noise", 0, *LOOPED),
    *[(*HIDDEN, 0, "stack 4 x 64", epochs, 4.0) for epochs in (8, 15)],
    ("MNIST", "noise", 0, "block 128, decay", 30, 2.0),
    *[("MNIST", "noise", 0, name, 8, 0.5) for name in ("hidden 4x8", "hidden 8x8")],
]
GREY = {"n_train": 60000, "epochs": 4, "n_test": 2000, "n_steps": 200}
COLOUR = {**GREY, "n_train": 20000, "epochs": 5, "n_test": 1000, "n_steps": 100}
COLOUR |= {"data": "CIFAR10-JPEG", "patch_size": 4}
SEEN = "stages 4x8; log-bilinear 8; log-bilinear 24; 3-gram; 4-gram"
READ = {"letters": "tinyshakespeare", "n_train": 2_000_000, "n_test": 55_000}
COUNTED = "log-bilinear 8; log-bilinear 24; 3-gram; 4-gram; 5-gram; 6-gram"
READERS = [  # who, a name, epochs (of a stage), times the learning rate, seeds
    ("stages 16x16", "stages16x16", 1, 1.0, (0, 1, 2)),
    ("stages 16x16", "stages16x16", 3, 1.0, (0, 1, 2)),
    ("stages 16x16", "stages16x16", 6, 1.0, (0,)),
    ("stages 32x16", "stages32x16", 1, 1.0, (0,)),
    ("exact 16x16", "exact16x16", 1, 1.0, (0,)),
    (COUNTED, "counted", 1, 1.0, (0,)),
    *[
        (f"{name}{kind}", (name + kind).replace(" ", "").replace(",", "-"), epochs, factor, seeds)
        for kind, epochs, factor, seeds in (
            ("", 1, 1.0, (0, 1, 2)),
            ("", 1, 0.5, (0,)),
            ("", 1, 2.0, (0,)),
            ("", 3, 1.0, (0, 1, 2)),
            ("", 6, 1.0, (0,)),
            (", dropout", 3, 1.0, (0,)),
        )
        for name in ("block 128", "stack 2 x 64", "stack 4 x 64")
    ],
]
RUNS = [  # chapter, name of the run, parameters
    *[
        (
            "19_verdict",
            f"rate-x{factor}-{name}",
            {"n_train": 20000, "epochs": 8, "lr_factor": factor, "only": only},
        )
        for name, only, factors in (
            ("two-deep", TWO_DEEP, (0.25, 0.5, 1.0, 2.0, 4.0)),
            ("dear", DEAR, (0.25, 0.5, 1.0, 2.0, 4.0)),
            ("single", SINGLE, (0.25, 0.5, 1.0, 2.0, 4.0)),
            ("ours", "hidden 16x8, decay", (0.5, 1.0, 2.0)),
            ("recurrent-decay", "recurrent 16x8, decay", (0.25, 0.5, 1.0)),
            ("deep", "stack 2 x 64; stack 4 x 64; block 32", (8.0,)),
            ("decayed", "block 128, decay", (2.0,)),
            ("block256", "block 256, decay", (0.5, 1.0, 2.0)),
            ("decayed-deep", "stack 4 x 64, decay", (4.0,)),
            ("last-norm", "block 64, last norm; stack 2 x 64, last norm", (8.0,)),
            ("deep-last-norm", "stack 2 x 64, last norm", (2.0, 4.0)),
            ("looped4x64", "looped 4 x 64", (1.0, 2.0, 4.0)),
            ("looped2x128", "looped 2 x 128, decay", (1.0, 2.0, 4.0)),
        )
        for factor in factors
    ],
    *[
        (
            "19_verdict",
            f"noise-rate-x{factor}-{name}",
            {
                "task": "noise",
                "n_train": 20000,
                "epochs": epochs,
                "lr_factor": factor,
                "only": only,
            },
        )
        for only, name, epochs, factors in NOISE_RATES
        for factor in factors
    ],
    *[  # as many steps as 55,000 images have in 15 epochs, or in 3 of a stage
        (
            "19_verdict",
            f"images-{n}-{name.replace(' ', '').replace(',', '-')}",
            {**CONTEST, "n_train": n, "only": name, "epochs": epochs * 55000 // n}
            | {"lr_factor": factor},
        )
        for n in (13750, 27500)
        for name, epochs, factor in (
            ("hidden 16x8, decay", 3, 1.0),
            ("stack 2 x 64", 15, 2.0),
            ("block 64", 15, 2.0),
        )
    ],
    *[
        (
            "19_verdict",
            f"{'' if data == 'MNIST' else data + '-'}rate-x{factor}-long-{name.replace(' ', '')}",
            {**CONTEST, "data": data, "epochs": 30, "lr_factor": factor, "only": name},
        )
        for data, name, factors in (
            ("MNIST", "block 64", (1.0, 2.0)),
            ("MNIST", "block 128", (2.0,)),
            ("MNIST", "stack 2 x 64", (1.0, 2.0, 4.0)),
            ("MNIST", "stack 4 x 64", (2.0, 4.0)),
            ("FashionMNIST", "stack 4 x 64", (2.0,)),
        )
        for factor in factors
    ],
    *[
        (
            "19_verdict",
            f"rate-x{factor}-longest-stack4x64",
            {**CONTEST, "epochs": 60, "lr_factor": factor, "only": "stack 4 x 64"},
        )
        for factor in (2.0, 4.0)
    ],
    *[  # at twice this rate, the best of short runs, one of three did learn
        (
            "19_verdict",
            f"{data}-{task}-looped2x128-decay-{epochs}-rate-x1.0-seed{seed}",
            {
                **CONTEST,
                **{"data": data, "task": task, "only": LOOPED[0]},
                **{"epochs": epochs, "lr_factor": 1.0, "seed": seed},
            },
        )
        for data, task, seed, epochs in (
            *[(*HIDDEN, seed, 60) for seed in (0, 1, 2)],
            (*CLOTHES, 0, 60),
            *[(data, "noise", 0, epochs) for epochs in (30, 60) for data in DATA],
        )
    ],
    *[
        (
            "19_verdict",
            f"{data}-{task}-{name.replace(' ', '').replace(',', '-')}-{epochs}-seed{seed}",
            {
                **CONTEST,
                **{"data": data, "task": task, "only": name},
                **{"epochs": epochs, "lr_factor": factor, "seed": seed},
            },
        )
        for data, task, seed, name, epochs, factor in CONVERGED
    ],
    *[  # the sources of known entropy, by how many letters are seen
        (
            "20_causal_network",
            f"{n // 1000}-thousand-letters-seed{seed}",
            {
                **{"texts": "markov 2; markov 3; copy", "n_train": n, "seed": seed},
                **{"only": SEEN, "epochs": epochs},
            },
        )
        for n, epochs, seeds in ((10000, 6, (0, 1, 2)), (100000, 3, (0, 1, 2)), (1000000, 1, (0,)))
        for seed in seeds
    ],
    *[
        (
            "22_shakespeare",
            f"{name}-{epochs}-rate-x{factor}-seed{seed}",
            {**READ, "only": only, "epochs": epochs, "lr_factor": factor, "seed": seed},
        )
        for only, name, epochs, factor, seeds in READERS
        for seed in seeds
    ],
    *[
        ("21_other_images", f"{data}-seed{seed}", {**GREY, "data": data, "seed": seed})
        for data in DATA
        for seed in (0, 1, 2)
    ],
    *[
        (
            "21_other_images",
            f"{name}-seed{seed}",
            {**COLOUR, "measured": measured, "side": side, "costs": not side, "seed": seed},
        )
        for seed in (0, 1, 2)
        for name, side, measured in (
            ("colour", 0, "hidden; noise; clean"),
            *((f"colour-{side}", side, "hidden") for side in (8, 16, 24)),
        )
    ],
    *[
        (
            "18_hidden_spins",
            f"{name}-seed{seed}",
            {
                **{"only": only, "seed": seed, "lr_factor": factor},
                **{"n_train": 20000, "epochs": 5, "n_test": 5000},
            },
        )
        for seed in (0, 1, 2)
        for name, only, factor in (
            ("local", LOCAL, 1.0),
            ("together-x0.5", "all together", 0.5),
            ("together-x1.0", "all together", 1.0),
            ("together-x2.0", "all together", 2.0),
        )
        if seed == 0 or name == "local"
    ],
    *[  # what the local rule gives up, by depth
        (
            "18_hidden_spins",
            f"{name}-{n_stages}-stages",
            {
                **{"only": only, "n_stages": n_stages, "lr_factor": factor},
                **{"n_train": 20000, "epochs": 5, "n_test": 5000},
            },
        )
        for name, only, factor, depths in (
            ("local", "hidden spins", 1.0, (6,)),
            ("together-x1.0", "all together", 1.0, (2, 6)),
        )
        for n_stages in depths
    ],
    *[  # one network for all updates
        (
            "18_hidden_spins",
            f"one-network-{name}-seed{seed}",
            {
                **{"only": only, "seed": seed, "n_heads": heads},
                **{"n_stages": 6, "n_updates": 96},
                **{"lr_factor": factor, "n_train": 20000, "epochs": 5, "n_test": 5000},
            },
        )
        for name, only, heads, factor, seeds in (
            ("hidden", "one network", 16, 1.0, (0, 1, 2)),
            ("tokens", "one network, tokens alone", 16, 1.0, (0, 1, 2)),
            ("as-large-tokens", "one network, tokens alone", 80, 0.2, (0,)),
            ("cascade", "hidden spins", 16, 1.0, (1, 2)),
            ("through-time-x1.0", "one network, through time", 16, 1.0, (0,)),
            ("through-time-x2.0", "one network, through time", 16, 2.0, (0,)),
        )
        for seed in seeds
    ],
    *[
        ("24_one_head", f"long-seed{seed}", {"n_train": 60000, "epochs": 6, "seed": seed})
        for seed in (0, 1, 2)
    ],
    ("06_transient_memories", "scans", {"scans": "gamma; learning rate; norm"}),
    ("06_transient_memories", "examples", {"scans": "examples"}),
    *[
        ("06_transient_memories", f"equal-loss-seed{n}", {"scans": "equal loss", "seeds": [n]})
        for n in (0, 1, 2)
    ],
    *[
        (
            chapter,
            f"learning-rate-x{factor}",
            {"epochs": epochs, "lr_factor": factor, "n_validation": 5000},
        )
        for chapter, epochs in (("04_masked_prediction", 15), ("05_denoising", 10))
        for factor in (0.5, 1.0, 2.0)
    ],
    *[
        (
            "12_ablations",
            f"learning-rate-x{factor}",
            {
                **ABLATIONS,
                "n_train": 10000,
                "n_images": 100,
                "lr_factor": factor,
                "n_validation": 5000,
                "train_on": "hidden; clean",
                "only": {
                    0.25: "beta 20; linear attention; 16 heads of rank 16",
                    8.0: "beta 0; beta 0.2",
                }.get(factor, ONE_CHANGE),
            },
        )
        for factor in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    ],
    *[
        (
            "12_ablations",
            f"uniform-heads-learning-rate-x{factor}",
            {
                **ABLATIONS,
                "n_train": 10000,
                "n_images": 100,
                "lr_factor": factor,
                "n_validation": 5000,
                "train_on": "hidden; clean",
                "only": UNIFORM_HEADS,
            },
        )
        for factor in (0.5, 1.0, 2.0, 4.0, 8.0)
    ],
    ("04_masked_prediction", "short-seed0", {"epochs": 4, "n_test": 10000}),
    ("05_denoising", "short-seed0", {"epochs": 3, "n_test": 10000}),
    *[
        ("12_ablations", f"{name}-seed{seed}", {"seed": seed, **ABLATIONS_OF_SEEDS, "only": only})
        for name, only in (("uniform-heads", UNIFORM_HEADS), ("linear", LINEAR_MAPS))
        for seed in (0, 1, 2)
    ],
    *[
        (
            "12_ablations",
            f"{name}-seed{seed}",
            {
                "seed": seed,
                "n_train": 60000,
                "epochs": 6,
                "n_test": 10000,
                "only": only,
                "train_on": "hidden; noisy",
            },
        )
        for name, only in (
            ("long", f"reference; beta 0; 16 heads of rank 16; {UNIFORM_HEADS}"),
            ("long-linear", LINEAR_MAPS),
        )
        for seed in (0, 1, 2)
    ],
    (
        "23_density_or_prediction",
        "learning-rates",
        {"prediction_rates": [0.02, 0.05, 0.1], "likelihood_rates": [0.5, 2.0, 8.0]},
    ),
    ("23_density_or_prediction", "three-seeds", {"seeds": [0, 1, 2]}),
    (
        "08_contrastive_divergence",
        "more-sweeps",
        {
            "own_steps": [1],
            "gibbs_sweeps": [1, 3],
            "n_chains": 250,
            "example_numbers": [0],
            "n_states": 200,
            "n_sweeps": 200,
        },
    ),
    *[
        (
            "08_contrastive_divergence",
            f"learning-rate-x{factor}",
            {
                "lr_factor": factor,
                "n_images": 2500,
                "example_numbers": [0],
                "n_states": 50,
                "n_steps": 20,
                "n_sweeps": 1,
            },
        )
        for factor in (0.33, 1.0, 3.0)
    ],
    *[
        (
            "08_contrastive_divergence",
            f"storage-{name}-seed{seed}",
            {
                **{"seed": seed, "n_images": 500, "own_steps": [1], "example_numbers": [0]},
                **{"n_states": 2, "n_sweeps": 1, "storage_numbers": numbers},
                **{"storage_rules": rules, "budgets": budgets},
            },
        )
        for name, numbers, rules, budgets, seeds in (
            (
                "rules",
                [10],
                "noisy starts; pseudo-likelihood; prediction rule; Gibbs",
                [200, 400, 800],
                (0,),
            ),
            ("numbers", [20, 50, 100], "noisy starts", [200, 400, 800, 1600], (0,)),
            ("300", [300], "noisy starts", [200, 400, 800], (0,)),
            ("some", [20, 50], "noisy starts", [200, 400, 800], (1, 2)),
        )
        for seed in seeds
    ],
    *[
        (
            "10_basins",
            f"storage-{name}-seed{seed}",
            {
                **{"seed": seed, "n_max": 10, "optimiser_steps": 1, "n_examples": 2},
                **{"storage_numbers": numbers, "budgets": budgets},
            },
        )
        for name, numbers, budgets, seeds in (
            ("few", [10, 20, 50], [600, 1200, 2400], (0,)),
            ("100", [100], [600, 1200, 2400, 4800, 9600], (0,)),
            ("300", [300], [600, 1200, 2400, 4800, 9600], (0,)),
            ("some", [20, 50, 100], [600, 1200, 2400], (1,)),
        )
        for seed in seeds
    ],
    ("09_synthetic_patterns", "five-seeds", {"seeds": [0, 1, 2, 3, 4]}),
    ("15_linear_predictor", "five-draws", {"draws": 5}),
    ("11_failure_signatures", "three-seeds", {"seeds": [0, 1, 2]}),
    *[
        (
            "13_memories_that_stay",
            f"noise-seed{seed}",
            {
                "seed": seed,
                "n_train": 10000,
                "epochs": 1,
                "free_epochs": 1,
                "n_test": 100,
                "n_images": 100,
                "twice_the_heads": True,
                "free_steps": 1000,
                "n_batches": 40,
                "noise_images": 10000,
            },
        )
        for seed in (0, 1, 2)
    ],
    *[
        (
            "14_accuracy_for_its_cost",
            f"{prefix}learning-rate-x{factor}-{group}",
            {
                "task": task,
                "only": only,
                "n_train": 60000,
                "epochs": epochs,
                "lr_factor": factor,
                "n_validation": 5000,
                "max_stages": 1,
            },
        )
        for task, prefix, epochs, groups in (
            ("hidden", "", 6, COST_HIDDEN),
            ("noise", "noise-", 3, COST),
        )
        for factor in (0.5, 1.0, 2.0)
        for group, only in groups.items()
    ],
    *[
        (
            "14_accuracy_for_its_cost",
            f"{task}-seed{seed}-{group}",
            {
                "task": task,
                "seed": seed,
                "only": only,
                "n_train": 60000,
                "epochs": 10,
                "n_test": 10000,
                "lr_factor": 0.5 if group.startswith("half") else 1.0,
            },
        )
        for task, groups in (
            ("hidden", {**COST_HIDDEN, "cascades": "blocks 32; blocks 64"}),
            ("noise", COST_NOISE),
        )
        for seed in (0, 1, 2)
        for group, only in groups.items()
    ],
    *[
        (
            "14_accuracy_for_its_cost",
            f"long-seed0-{group}",
            {"only": only, "n_train": 60000, "epochs": 30, "n_test": 10000, "max_stages": 2},
        )
        for group, only in {
            "attractors": "attractor 8x16; attractor 16x16",
            "shared": "shared 8x32",
            "blocks": "transformer block 64; transformer block 128",
        }.items()
    ],
    (
        "14_accuracy_for_its_cost",
        "patches4-seed0",
        {
            "task": "noise",
            "patch_size": 4,
            "n_train": 60000,
            "epochs": 10,
            "n_test": 10000,
            "max_stages": 1,
            "only": "attractor 4x8; attractor 8x16; transformer block 32; transformer block 64",
        },
    ),
    (
        "17_mean_field",
        "large-networks",
        {
            "sizes": [250, 1000, 4000],
            "n_steps": 40,
            "networks": 6,
            "n_samples": 10000,
            "capacity_dims": [2, 4, 8, 16],
            "capacity_sizes": [500, 2000],
            "capacity_steps": 300,
            "softmax_sizes": [250, 500, 1000],
        },
    ),
    *[
        (
            "16_why_transient",
            f"seed{seed}",
            {"seed": seed, "measure": "all", "n_steps": 200, "n_spectra": 12},
        )
        for seed in (0, 1, 2)
    ],
    *[
        (chapter, f"seed{seed}", {"seed": seed, **parameters})
        for chapter, parameters in [
            ("04_masked_prediction", {"epochs": 15, "n_test": 10000}),
            ("05_denoising", {"epochs": 10, "n_test": 10000}),
            (
                "08_contrastive_divergence",
                {"example_numbers": [10, 100, 1000], "n_states": 200, "n_sweeps": 200},
            ),
            ("10_basins", {"n_max": 60000, "every": 1}),
            ("12_ablations", {**ABLATIONS_OF_SEEDS, "only": ONE_CHANGE}),
            (
                "13_memories_that_stay",
                {
                    "n_train": 60000,
                    "epochs": 15,
                    "free_epochs": 6,
                    "twice_the_heads": True,
                    "n_test": 1000,
                    "n_images": 200,
                    "free_steps": 1000,
                    "n_batches": 80,
                    "scan_images": 10000,
                },
            ),
        ]
        for seed in (0, 1, 2)
    ],
]
