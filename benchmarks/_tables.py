"""Write the tables of results/README.md from the records, and the lists of modules from the modules: `make results`.

Each table stands between two marks, <!-- NAME --> and <!-- /NAME -->; the prose around them is written by hand.
"""

import re
from pathlib import Path
from textwrap import fill

from benchmarks import _families, _low_rank, hinton
from benchmarks._frontier_controls import before_moves
from benchmarks._frontier_search import best_trials
from benchmarks._gains import chosen_temperature, gain
from benchmarks._modules import list_modules
from kd_lab.compression.records import load_records
from kd_lab.compression.rules import OPEN
from kd_lab.cost import count_parameters
from kd_lab.networks.zoo import build_model
from kd_lab.results import load_results

ROOT = Path(__file__).resolve().parents[1]
FILES = ("README.md", "CONTRIBUTING.md", "results/README.md")
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)

PRUNED = {  # what others reported, by network and factor
    ("lenet300", "12"): "1.59 (Han et al. 2015, arXiv 1506.02626, table 1)",
    ("lenet300", "50"): "1.99 at 56 times (Guo et al. 2016, Dynamic Network Surgery)",
    ("lenet5", "12"): "0.77 (Han et al. 2015)",
    ("lenet5", "50"): "0.91 at 108 times (Guo et al. 2016)",
}
QUANTIZED = {
    "w8a8": "weights and activations in 8 bits",
    "w4": "weights in 4 bits",
    "w2": "weights in 2 bits",
    "w2_qat": "weights in 2 bits, trained",
}
CONTROLS = {
    "student": "Hinton's student, twice 800 units, moved by up to two pixels",
    "lenet300": "`lenet300`, by up to one pixel",
    "lenet5": "`lenet5`, by up to one pixel",
    "distilled": "Hinton's student, taught while images move by up to two pixels",
}
STUDENTS = {
    "teacher": "teacher, twice 1,200 units",
    "hard": "student, twice 800, on labels",
    "distilled": "… taught",
    "no3": "… taught without 3s",
    "no3_fixed": "… and its bias mended",
}
THIN = {
    "weight": "nearest to the weight",
    "output": "nearest to the output",
    _low_rank.LABELS: "… and an epoch on labels",
    _low_rank.TAUGHT: "… and an epoch with the dense network as the teacher",
}
FEW_LABELS = {
    "scratch": "`cnn` on the labels alone",
    "scratch_views": "… on random views of their images",
    "whole": "pre-trained, all layers trained on the labels",
    "pretrained": "… the last layer alone",
    "pretrained_views": "… and then all layers, on random views",
    "pruned": "pruned, trained on the labels",
    "distilled": "… taught over unlabelled images instead",
    "quantized": "… and rounded to 4 bits",
}
REACHED = {  # ratios that others reported, by what was reached here
    "lenet300_taught_1_64": "40 (Deep Compression, Han et al. 2016)",
    "lenet300_taught_1_90": "124 (arXiv 1906.06624)",
    "lenet5_taught_0_80": "39 (Deep Compression); 555 (MIRACLE, Havasi et al. 2019)",
    "lenet5_taught_1_00": "1110 (MIRACLE)",
}
STAGE = ("bytes", "validation_error")
STAGES = {  # of the recipe that reached it, one after another
    "lenet300_taught_1_64": (
        "as it was",
        "half of the units taken away",
        "96.7 % of the weights pruned",
        "fine-tuned",
        "rounded to 3, 3 and 4 bits",
        "values shared, biases too",
    ),
    "lenet5_taught_1_00": (
        "as it was",
        "70 to 94 % of channels and units taken away",
        "78 % of the weights pruned",
        "fine-tuned",
        "rounded to 4, 3, 4 and 4 bits",
        "values shared, biases too",
    ),
}


def main() -> None:
    """Write every table again."""
    for name in FILES:
        path = ROOT / name
        path.write_text(filled(path.read_text()))


def filled(text: str) -> str:
    """Return a text with the tables between its marks made again; other marks stay as they are."""
    made = {make.__name__: make for make in TABLES}
    return BLOCK.sub(lambda found: f"{found[1]}{made[found[2]]()}\n{found[3]}" if found[2] in made else found[0], text)


def table(header: list, rows: list[list]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def networks() -> str:
    """Return the test errors of the networks that ship."""
    record, rows = load_results("baselines"), []
    for name in record.names("networks"):
        errors, published = record.errors(name), record.part(name, "published")
        source = record.part(name, "source")
        rows.append(
            [
                f"`{name}`",
                f"{count_parameters(build_model(name)):,}",
                f"{errors.mean:.2f}",
                f"{errors.low:.2f} to {errors.high:.2f}",
                f"{published:.2f} ({source})" if published else source,
            ]
        )
    return table(["network", "parameters", "mean", "lowest to highest", "published"], rows)


def importance() -> str:
    """Return the points lost at 80 % by importance and scope."""
    record, rows = load_results("importance"), []
    for name in record.names("networks"):
        for way in record.names(name, "lost"):
            lost = [record.figures(name, way, scope, 0.8) for scope in ("global", "per_layer")]
            rows.append([f"`{name}`", f"`{way}`", *(f"{each:z.2f}" for each in lost)])
    return table(["network", "importance", "global", "layer by layer"], rows)


def pruning() -> str:
    """Return the test errors of pruned networks, and what half of a CNN and least squares come to."""
    record, rows = load_results("pruning"), []
    for name in record.names("compress"):
        for factor in record.part("compress", name, "last_epochs"):
            errors, dense = record.errors("compress", name, factor), record.errors("compress", name, 1)
            cells = [f"`{name}`", f"{factor} times fewer", f"{errors.mean:.2f}", f"{errors - dense:z.2f}"]
            rows.append([*cells, PRUNED.get((name, factor), "")])
    dense = " and ".join(f"{record.errors('compress', name, 1).mean:.2f}" for name in record.names("compress"))
    more = record.errors("half_cnn", "half") - record.errors("half_cnn", "dense")
    by_size, by_least_squares = (record.figures("lost", way).mean for way in ("magnitude", "least_squares"))
    text = (
        f"The dense networks: {dense}. `cnn` with half the channels of both convolutions removed and one epoch of "
        f"training: {more:.2f} points more errors. 80 % of every layer of `lenet300` pruned, no training after: "
        f"{by_size:.2f} points lost by magnitude, {by_least_squares:.2f} by least squares."
    )
    header = ["network", "parameters", "test error, %", "more than dense, points", "published"]
    return f"{table(header, rows)}\n\n{fill(text, 118)}"


def quantization() -> str:
    """Return the points lost to few bits, and the error of binary weights."""
    record, names = load_results("quantization"), ("lenet300", "cnn")
    rows = [
        [label, *(f"{record.errors(name, way) - record.errors(name, 'dense'):z.2f}" for name in names)]
        for way, label in QUANTIZED.items()
    ]
    minutes = record.figures("binary", "cpu_seconds").mean / 60
    text = (
        "Binary weights, 784-800-400-10 with BatchNorm, trained from the start for "
        f"{minutes:.1f} minutes on one core: {record.errors('binary'):.2f} % test error; BinaryConnect (Courbariaux et "
        "al. 2015) reached 1.29 with three layers of 1,024 units."
    )
    return f"{table(['quantized', *(f'`{name}`' for name in names)], rows)}\n\n{fill(text, 118)}"


def experiment() -> str:
    """Return the test errors of Hinton's experiment, done again."""
    record, rows = load_results("hinton"), []
    for way, label in STUDENTS.items():
        found = hinton.counted(record, way)
        ends = f" ({found.low} to {found.high})" if len(found.values) > 1 else ""
        rows.append([label, f"{found.mean:g}{ends}", hinton.PUBLISHED[way]])
    text = (
        "The teacher has BatchNorm, which theirs had not, and took "
        f"{record.part('teacher', 'cpu_minutes'):.0f} minutes of one core."
    )
    return f"{table(['network', 'test errors', 'published'], rows)}\n\n{text}"


def controls() -> str:
    """Return what moved images alone bring: test errors of those that were measured, and points gained over unmoved."""
    record, rows = load_results("frontier"), []
    for name, label in CONTROLS.items():
        if name in record["controls"]:
            errors, before = record.errors("controls", name), before_moves(name)
            ends = f"{errors.mean:.2f} ({errors.low:.2f} to {errors.high:.2f})"
            rows.append([label, f"{before.mean:.2f}", ends, f"{before - errors:+.2f}"])
    return table(["network", "images as they are", "moved images", "points gained (95 %)"], rows)


def gains() -> str:
    """Return what a teacher gains by number of images."""
    record = load_results("distillation")
    counts = record.names("gains", "images")
    best = {images: chosen_temperature(record, images) for images in counts}
    row = [f"{gain(record, images, best[images]).mean:z.1f} (T = {best[images]:g})" for images in counts]
    return table([f"{int(images):,} images" for images in counts], [row])


def few_labels() -> str:
    """Return the test errors of networks that learned from few labels."""
    record = load_results("few_labels")
    errors = {way: [record.errors(f"labels{count}", way) for count in (100, 1000)] for way in FEW_LABELS}
    rows = [
        [label, f"{record.figures('labels100', way, 'parameters').mean:,.0f}", *(f"{each:.2f}" for each in errors[way])]
        for way, label in FEW_LABELS.items()
    ]
    return table(["network", "parameters", "100 labels", "1,000 labels"], rows)


def trees() -> str:
    """Return the accuracies of soft trees."""
    record = load_results("hinton")
    labels, taught, moved = (
        100 - record.errors("trees", f"{way}_single_leaf").mean for way in ("labels", "distilled", "moved")
    )
    more = 100 - load_results("frontier").errors("controls", "tree").mean
    text = (
        "Soft trees of depth 8 (Frosst & Hinton 2017, arXiv 1711.09784), test accuracy of the single most probable "
        f"leaf, five seeds: {labels:.2f} % on labels (published 94.45), {taught:.2f} % taught by `cnn` (published "
        f"96.76) on five times as many images, each moved by a pixel; on these images with their labels {moved:.2f} %, "
        "so most of the gain is theirs. On nine times as many, in twice as many epochs, a taught tree reads "
        f"{more:.2f} % (`frontier.json`)."
    )
    return fill(text, 118)


def reached() -> str:
    """Return the bytes and errors of the smallest files."""
    rows = []
    for key, row in load_results("deep_compression").part("reached").items():
        low, high = row["range"]
        rows.append(
            [
                f"`{row['network']}`",
                f"{row['limit']:.2f} %",
                "yes" if row["way"] == "taught" else "no",
                REACHED.get(key, ""),
                f"{row['ratio']:.0f}",
                f"{row['bytes']:,.0f}",
                f"{row['error']:.2f} % ({low:.2f} to {high:.2f})",
                row["points to dense"],
                f"{row['validation error']:.2f} %",
                f"{row['CPU-minutes']:.1f}",
            ]
        )
    header = ["network", "limit", "teacher", "published", "ratio", "bytes", "test error (lowest to highest)"]
    return table([*header, "points gained over dense (95 %)", "validation error", "CPU-minutes"], rows)


def stages() -> str:
    """Return what each stage of two recipes bought: mean bytes of the file and mean validation error."""
    record, header, sides = load_results("deep_compression"), [], []
    for key, labels in STAGES.items():
        made, _, place = record.part(key, "files").rpartition("_")
        keys = (made, "recipes", place, "stages")
        ends = [[record.figures(*keys, stage, figure).mean for figure in STAGE] for stage in record.names(*keys)]
        header += [f"`{made.partition('_')[0]}`, taught", "bytes", "error"]
        sides.append(
            [[label, f"{size:,.0f}", f"{error:.2f} %"] for label, (size, error) in zip(labels, ends, strict=True)]
        )
    return table(header, [left + right for left, right in zip(*sides, strict=True)])


def records() -> str:
    """Return the records in the order in which they were entered."""
    rows = []
    for record in load_records():
        errors, before = record.scores.errors, "the first"
        if record.before is not None:
            _, difference = record.before
            before = "{:+.2f} ({:+.2f} to {:+.2f})".format(*difference)
        rows.append(
            [
                record.board if record.board == OPEN else f"`{record.board}`",
                f"{record.limit:.2f} %",
                record.entered,
                f"{record.scores.bytes:,.0f}",
                f"{errors:.2f}",
                before,
                f"{record.trials:,}",
                f"`{record.command}`",
            ]
        )
    header = ["board", "limit", "entered", "bytes", "test error, %", "against the one before, points", "trials"]
    return table([*header, "made again by"], rows)


def searched() -> str:
    """Return the best designs that a search of small networks found, by their bytes."""
    search = load_results("frontier").part("search")
    rows = [
        [
            each["bytes"],
            f"{each['validation_error']:.2f}",
            "-".join(map(str, each["widths"])),
            f"{each['kernel']}×{each['kernel']} by {each['stride']}",
            ", ".join(map(str, each["bits"])),
            f"{100 * each['sparsity']:.0f} %",
        ]
        for each in best_trials(search)
    ]
    text = (
        f"Of {search['recipe']['runs']} trials {len(search['trials'])} were trained to the end, {search['stopped']} "
        f"stopped early, {search['failed']} failed; {search['refused']:,} proposals cost no training."
    )
    header = ["bytes", "validation error, %", "channels", "first window", "bits of the four layers", "pruned"]
    return f"{table(header, rows)}\n\n{fill(text, 118)}"


def families() -> str:
    """Return what a recurrent network and a transformer reach, taught by a CNN and compressed."""
    return table(_families.HEADER, _families.family_rows(load_results("beyond")))


def low_rank() -> str:
    """Return the points lost to two thin layers in place of one, and what they save."""
    record = load_results("beyond")
    rows = [[label, f"{_low_rank.lost_points(record, way):z.2f}"] for way, label in THIN.items()]
    ranks = " and ".join(f"`{name}` at rank {rank}" for name, rank in record.part("low_rank", "ranks").items())
    fewer = {cost: _low_rank.saved(record, cost) for cost in ("macs", "bytes")}
    faster = {size: _low_rank.speed(record, size).mean for size in _low_rank.BATCH_SIZES}
    text = (
        f"`lenet300` with {ranks}: {fewer['macs']:.2f} times fewer MACs, {fewer['bytes']:.2f} times fewer bytes, "
        f"{faster[256]:.1f} times as fast for 256 images and {faster[1]:.1f} times for one."
    )
    return f"{table(['two layers for one', 'points lost'], rows)}\n\n{fill(text, 118)}"


def faults() -> str:
    """Return what the trials of faults counted."""
    record = load_results("faults")
    rows = [[f"`{name.removeprefix('faults.')}`", f"{record.part(name):,}"] for name in record.names("figures")]
    return table(["figure", "count"], rows)


def modules() -> str:
    """Return the modules and folders of kd_lab, from the lowest floor up, with the first lines of their docstrings."""
    return table(["module", "what it is for"], [[f"`{name}`", line] for _, name, line in list_modules()])


def floors() -> str:
    """Return every module of kd_lab with its floor."""
    rows = [[floor, f"`{name}`", line] for floor, name, line in list_modules(inside=True)]
    return table(["floor", "module", "what it is for"], rows)


TABLES = (
    networks,
    importance,
    pruning,
    quantization,
    experiment,
    controls,
    gains,
    few_labels,
    trees,
    reached,
    stages,
    records,
    searched,
    families,
    low_rank,
    faults,
    modules,
    floors,
)


if __name__ == "__main__":
    main()
