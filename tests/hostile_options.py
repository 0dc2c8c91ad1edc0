"""For each option of each command: a command that is right without it, and values of the option
that cannot be meant."""

NO_NUMBER = ("", "x", "λ", "0x10", "\x1b[31m1")
NO_WHOLE = (*NO_NUMBER, "nan", "inf", "-inf", "1e-300", "1.5", "9" * 5000)
NO_COUNT = (*NO_WHOLE, "0", "-1", "-" + 30 * "9", 30 * "9")
NO_SMALL_COUNT = (*NO_COUNT, "999999999999")
NO_FINITE = (*NO_NUMBER, "nan", "inf", "-inf", "1e400")
NO_TOLERANCE = (*NO_FINITE, "0", "-1", "1e-300", "1e300")
NO_NAME = ("", "xx", "λ", "FOLDER", "a\nb", "\x1b]0;title\x07", 5000 * "x")
NO_RUN = (
    "",
    "~nosuchuser/x",
    "nowhere",
    "nowhere/x",
    "FOLDER",
    "FILE",
    "FILE/x",
    "LOOP",
    "LOOP/x",
    "/dev/null",
    "a\nb",
    "\x1b[31mx",
    "\udcff",
    5000 * "x",
)
NO_PROGRAM = (
    ":x",
    ":",
    "nowhere.py:x",
    "FOLDER:x",
    "FILE:x",
    "LOOP:x",
    "~nosuchuser/x.py:x",
    "/dev/zero:x",
    "PROGRAM:",
    "PROGRAM:none",
    "FAILS:x",
    "EXITS:x",
)
NO_BUILDER = ("PROGRAM:x", "BUILDS:raises", "BUILDS:number", "BUILDS:needs", "BUILDS:torch")
NO_SETTING = (
    "",
    "x",
    "=1",
    "steps=0",
    "stpes=1",
    "network.width=8",
    "network.labels=0",
    "data=xx",
)
NO_SETTING = (*NO_SETTING, "conditional=1", "a\nb=1", "network_source=3", "data_options.size=8")
NO_PAGES = ("", "~nosuchuser/x", "nowhere", "FILE", "FILE/x", "LOOP", "\x1b[31mx")
NO_DATA = (*NO_PAGES, "a\nb")
NO_FIGURE = ("", "~nosuchuser/x", "nowhere/x.png", "FILE/x.png", "LOOP/x.png", "DRAWN.png")
NO_FIGURE = (*NO_FIGURE, "x.weird")
NO_DEVICE = ("", "x", "meta", "cuda:99", "cuda:-1", "hpu", "privateuseone", "vulkan", "λ", "cpu:")
EVALUATE = ("evaluate", "RUN", "--draws", "2", "--replicates", "2", "--quiet")
SAMPLE = ("sample", "RUN", "--count", "2", "--steps", "2", "--quiet")
CLASSES = ("sample", "CLASSES", "--count", "2", "--steps", "2", "--quiet")
TRAIN = ("train", "BUILDS:build", "--data", "digits", "--out", "NEW", "--quiet")
CONFIG = ("train", "CONFIG.json", "--data", "digits", "--out", "NEW", "--quiet")
COMPRESS = ("compress", "RUN", "IMAGES.npy", "NEW.vdiff", "--steps", "2", "--quiet")
DECOMPRESS = ("decompress", "RUN", "IMAGES.vdiff", "NEW.npy", "--quiet")
ESTIMATORS = ("verify", "--estimators", "gaussian", "--points", "4")
# for each option of each command: a command that is right without it, and what it refuses
HOSTILE: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "train": {
        "what": (
            ("train", "--data", "digits", "--out", "NEW", "--quiet", "--"),
            (*NO_PROGRAM, *NO_BUILDER, *NO_RUN, "nowhere.json", "BROKEN.json", "OWN.json"),
        ),
        "--data": (TRAIN, NO_DATA),
        "--size": (TRAIN, (*NO_COUNT, "8")),
        "--out": (TRAIN[:4], ("", "~nosuchuser/x", "FILE", "FILE/x", "LOOP", "/dev/null")),
        "--set": (TRAIN, NO_SETTING),
        "--model": (CONFIG, (*NO_NAME, *NO_PROGRAM, *NO_BUILDER)),
        "--resume": (TRAIN, NO_NAME),
        "--every": (TRAIN, NO_COUNT),
        "--device": (TRAIN, NO_DEVICE),
        "--dry-run": (TRAIN, ("=x",)),
        "--quiet": (TRAIN, ("=x",)),
    },
    "evaluate": {
        "run": (("evaluate", "--quiet", "--"), (*NO_RUN, *NO_PROGRAM, *NO_BUILDER)),
        "--classes": (EVALUATE, (*NO_COUNT, "3")),
        "--data": (EVALUATE, NO_DATA),
        "--model": (EVALUATE, (*NO_NAME, *NO_PROGRAM, *NO_BUILDER, "BUILDS:build")),
        "--size": ((*EVALUATE, "--data", "FOLDER"), NO_COUNT),
        "--set": ((*EVALUATE, "--data", "FOLDER"), (*NO_SETTING, "lr=1", "data_options.sze=8")),
        "--split": (EVALUATE, NO_NAME),
        "--images": (EVALUATE, NO_SMALL_COUNT),
        "--json": (EVALUATE, ("=x",)),
        "--tolerance": (EVALUATE, NO_TOLERANCE),
        "--budget": ((*EVALUATE, "--tolerance", "0.1"), NO_COUNT),
        "--draws": (EVALUATE, NO_SMALL_COUNT),
        "--replicates": (EVALUATE, (*NO_SMALL_COUNT, "1")),
        "--steps": (EVALUATE, NO_COUNT),
        "--ode": (EVALUATE, ("=x",)),
        "--ode-tolerance": ((*EVALUATE, "--ode"), NO_TOLERANCE),
        "--against": (EVALUATE, NO_RUN),
        "--against-model": (
            (*EVALUATE, "--against", "CLASSES"),
            (*NO_NAME, *NO_PROGRAM, *NO_BUILDER, "BUILDS:build"),
        ),
        "--seed": (EVALUATE, NO_WHOLE),
        "--batch": (EVALUATE, NO_COUNT),
        "--device": (EVALUATE, NO_DEVICE),
        "--out": (EVALUATE, ("", "~nosuchuser/x", "nowhere/x", "FILE/x", "LOOP/x")),
        "--quiet": (EVALUATE, ("=x",)),
    },
    "sample": {
        "run": (("sample", "--quiet", "--"), (*NO_RUN, *NO_PROGRAM, *NO_BUILDER)),
        "--classes": (SAMPLE, (*NO_COUNT, "3")),
        "--shape": (SAMPLE, (*NO_COUNT, "3")),
        "--model": (SAMPLE, (*NO_NAME, *NO_PROGRAM, *NO_BUILDER, "BUILDS:build")),
        "--count": (SAMPLE, NO_SMALL_COUNT),
        "--label": (CLASSES, (*NO_WHOLE, "-1", "4", 30 * "9")),
        "--seed": (SAMPLE, NO_WHOLE),
        "--step": (SAMPLE, NO_NAME),
        "--steps": (SAMPLE, (*NO_SMALL_COUNT, str(2**63 - 1))),
        "--grid": (SAMPLE, (*NO_NAME, *NO_PROGRAM)),
        "--spacing": (SAMPLE, NO_NAME),
        "--variance": (SAMPLE, NO_NAME),
        "--eta": ((*SAMPLE, "--step", "ddim"), (*NO_FINITE, "-1", "1.5", "1e300")),
        "--order": ((*SAMPLE, "--step", "adams_bashforth"), (*NO_COUNT, "4")),
        "--target": ((*SAMPLE, "--step", "adams_bashforth"), NO_NAME),
        "--method": ((*SAMPLE, "--step", "ode"), NO_NAME),
        "--rtol": ((*SAMPLE, "--step", "ode"), (*NO_FINITE, "0", "-1")),
        "--atol": ((*SAMPLE, "--step", "ode"), (*NO_FINITE, "0", "-1")),
        "--guidance": ((*CLASSES, "--null-label", "3"), (*NO_FINITE, "1e300", "-1e300")),
        "--null-label": ((*CLASSES, "--guidance", "2"), (*NO_WHOLE, "-1", "4", 30 * "9")),
        "--interval": ((*CLASSES, "--guidance", "2", "--null-label", "3"), ("", "x", "1")),
        "--clip": (SAMPLE, ("=x",)),
        "--out": (SAMPLE, ("", "~nosuchuser/x", "FILE", "FILE/x", "LOOP")),
        "--png": (SAMPLE, ("", "~nosuchuser/x", "FILE", "FILE/x", "LOOP", "RUN", "/dev/null")),
        "--draw": (SAMPLE, ("=x",)),
        "--gif": (SAMPLE, ("=x",)),
        "--quiet": (SAMPLE, ("=x",)),
        "--batch": (SAMPLE, NO_COUNT),
        "--device": (SAMPLE, NO_DEVICE),
    },
    "compress": {
        "run": (("compress", "--quiet", "--"), NO_NAME),
        "data": (("compress", "--quiet", "--", "RUN"), NO_NAME),
        "out": (COMPRESS[:3], ("", "~nosuchuser/x", "nowhere/x", "FILE/x", "LOOP/x", "FOLDER")),
        "--classes": (COMPRESS, (*NO_COUNT, "3")),
        "--model": (COMPRESS, (*NO_NAME, *NO_PROGRAM, *NO_BUILDER, "BUILDS:build")),
        "--steps": (COMPRESS, NO_SMALL_COUNT),
        "--tolerance": (COMPRESS, (*NO_FINITE, "0", "-1")),
        "--batch": (COMPRESS, NO_COUNT),
        "--no-bound": (COMPRESS, ("=x",)),
        "--device": (COMPRESS, NO_DEVICE),
        "--json": (COMPRESS, ("=x",)),
        "--quiet": (COMPRESS, ("=x",)),
    },
    "decompress": {
        "run": (("decompress", "--quiet", "--"), NO_NAME),
        "data": (("decompress", "--quiet", "--", "RUN"), NO_NAME),
        "out": (DECOMPRESS[:3], ("", "~nosuchuser/x.npy", "nowhere/x.npy", "LOOP/x.npy", "FILE")),
        "--classes": (DECOMPRESS, (*NO_COUNT, "3")),
        "--model": (DECOMPRESS, (*NO_NAME, *NO_PROGRAM, *NO_BUILDER, "BUILDS:build")),
        "--device": (DECOMPRESS, NO_DEVICE),
        "--quiet": (DECOMPRESS, ("=x",)),
    },
    "describe": {
        "objective": (("describe", "--"), (*NO_NAME, *NO_PROGRAM, "PROGRAM:x")),
        "--compare": (("describe", "edm"), (*NO_NAME, *NO_PROGRAM, "PROGRAM:x")),
        "--all": (("describe",), ("=x",)),
        "--json": (("describe", "edm"), ("=x",)),
        "--figure": (("describe", "edm"), NO_FIGURE),
    },
    "verify": {
        "names": (("verify", "--"), NO_NAME),
        "--model": (("verify", "tweedie"), (*NO_NAME, *NO_PROGRAM)),
        "--estimators": (("verify",), ("=x",)),
        "--json": (("verify", "tweedie"), ("=x",)),
        "--points": (ESTIMATORS, NO_SMALL_COUNT),
        "--seed": (ESTIMATORS, NO_WHOLE),
        "--draws": (("verify", "tweedie"), NO_SMALL_COUNT),
        "--pages": (("verify",), NO_PAGES),
    },
}  # fmt: skip
CASES = [
    (command, option, value)
    for command, options in HOSTILE.items()
    for option, (_, values) in options.items()
    for value in values
]
