"""Quantizes a model by mmq and by llama-quantize, and has llama-perplexity judge both files against the original.

    python benches/quality.py --model F16.gguf --text TEXT --mmq target/release/mmq --llama BIN_DIR --tsv OUT.tsv
    python benches/quality.py … --imatrix FILE --types IQ3_XXS,IQ2_M,IQ1_S

BIN_DIR holds llama-quantize and llama-perplexity; --imatrix is a file of `mmq imatrix` or llama-imatrix, which both programs
then use. A line for each type: perplexity, mean divergence from the original (KLD) and how often the likeliest token stays, with
the standard errors that llama-perplexity prints. The differences of KLD and of the perplexity's logarithm between both programs'
files have the standard errors of their means over the stretches of text: both files see the same ones. Lines that the TSV file has
already are not measured again. The original's logits go to a temporary file (--scratch) of 50 MB for each stretch of 512 tokens
and 49,000 tokens of vocabulary. Needs nothing but Python.
"""

import argparse
import csv
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PLAIN = (
    "Q8_0 Q6_K Q5_K_M Q5_K_S Q4_K_M Q4_K_S Q3_K_L Q3_K_M Q3_K_S Q2_K Q2_K_S Q5_1 Q5_0 Q4_1 Q4_0 IQ4_NL IQ4_XS IQ3_M IQ3_S IQ3_XS"
    " TQ2_0 TQ1_0 Q2_0 Q1_0"
).split()
# llama-quantize makes these with an importance matrix alone.
WITH_IMATRIX = "IQ3_XXS IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S".split()
NUMBER = r"(-?[\d.]+|nan) ± +(-?[\d.]+|nan)"
FIGURES = {"perplexity": rf"Mean PPL\(Q\) +: +{NUMBER}", "KLD": rf"Mean +KLD: +{NUMBER}", "same top, %": rf"Same top p: +{NUMBER}"}
# By stretch: perplexity, logarithm of its ratio to the original's, KLD; each the mean so far.
STRETCH = re.compile(rf"^ *\d+ +{NUMBER} +{NUMBER} +{NUMBER} ", re.MULTILINE)
PAIRED = {"ln perplexity": 2, "KLD": 4}
PROGRAMS = ["mmq", "llama-quantize"]
NAMES = [f"{program} {what}" for what in FIGURES for program in PROGRAMS] + [f"mmq - llama-quantize {what}" for what in PAIRED]
COLUMNS = ["type", "imatrix"] + [name + part for name in NAMES for part in ("", " ±")]


def run(command):
    """What a program wrote; its last lines are shown if it fails."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    text = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed ({done.returncode}):\n" + "\n".join(text.splitlines()[-15:]))
    return text


def perplexity(model, *more):
    return run(
        [args.llama / "llama-perplexity", "-m", model, "-f", args.text, "-c", 512, "--chunks", args.chunks, "-t", args.threads, *more]
    )


def quantize(program, kind, out):
    imatrix = ["--imatrix", args.imatrix] if args.imatrix else []
    command = [args.mmq, "quantize", "-q"] if program == "mmq" else [args.llama / "llama-quantize"]
    run([*command, *imatrix, args.model, out, kind, args.threads])


def figures(program, kind, logits, folder):
    out = folder / "quantized.gguf"
    quantize(program, kind, out)
    text = perplexity(out, "--kl-divergence", "--kl-divergence-base", logits)
    out.unlink()
    found = {}
    for what, pattern in FIGURES.items():
        if not (match := re.search(pattern, text)):
            sys.exit(f"llama-perplexity printed no {what}:\n{text[-2000:]}")
        found[f"{program} {what}"], found[f"{program} {what} ±"] = match.groups()
    return found, [match.groups() for match in STRETCH.finditer(text)]


def each(means):
    """Values of which running means are given."""
    return [n * now - (n - 1) * before for n, (before, now) in enumerate(zip([0.0, *means], means), 1)]


def differences(stretches):
    found = {}
    for what, column in PAIRED.items():
        ours, theirs = (each([float(line[column]) for line in lines]) for lines in stretches)
        off = [a - b for a, b in zip(ours, theirs, strict=True)]
        found[f"mmq - llama-quantize {what}"] = f"{statistics.mean(off):.6f}"
        found[f"mmq - llama-quantize {what} ±"] = f"{statistics.stdev(off) / len(off) ** 0.5:.6f}"
    return found


def done_before():
    if not args.tsv.exists():
        return set()
    with args.tsv.open(newline="") as lines:
        return {(row["type"], row["imatrix"]) for row in csv.DictReader(lines, delimiter="\t")}


def main():
    before, imatrix = done_before(), "yes" if args.imatrix else "no"
    kinds = args.types.split(",") if args.types else PLAIN + (WITH_IMATRIX if args.imatrix else [])
    kinds = [kind for kind in kinds if (kind, imatrix) not in before]
    if not kinds:
        return
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        folder = Path(folder)
        logits = args.logits or folder / "logits"
        if not logits.exists():
            text = perplexity(args.model, "--kl-divergence-base", logits)
            print(re.search(r"Final estimate.*", text)[0], file=sys.stderr, flush=True)
        for kind in kinds:
            row, stretches = {"type": kind, "imatrix": imatrix}, []
            for program in PROGRAMS:
                found, lines = figures(program, kind, logits, folder)
                row |= found
                stretches.append(lines)
            row |= differences(stretches)
            is_new = not args.tsv.exists()
            with args.tsv.open("a", newline="") as lines:
                writer = csv.DictWriter(lines, COLUMNS, delimiter="\t", lineterminator="\n")
                if is_new:
                    writer.writeheader()
                writer.writerow(row)
            shown = [f"{what} {row[f'mmq {what}']} : {row[f'llama-quantize {what}']}" for what in FIGURES]
            shown += [f"{what} {row[(name := f'mmq - llama-quantize {what}')]} ± {row[name + ' ±']}" for what in PAIRED]
            print(f"{kind:8} {', '.join(shown)} (mmq : llama-quantize, then mmq - llama-quantize)", file=sys.stderr, flush=True)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", type=Path, required=True, help="the original, F16 or F32")
parser.add_argument("--text", type=Path, required=True, help="what is predicted")
parser.add_argument("--mmq", type=Path, required=True)
parser.add_argument("--llama", type=Path, required=True, help="folder of llama-quantize and llama-perplexity")
parser.add_argument("--imatrix", type=Path, help="importance matrix that both use")
parser.add_argument("--types", help="file types, between commas [default: all]")
parser.add_argument("--chunks", type=int, default=16, help="stretches of 512 tokens [default: 16]")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--logits", type=Path, help="where the original's logits are kept between runs")
parser.add_argument("--scratch", type=Path, help="folder for temporary files")
parser.add_argument("--tsv", type=Path, required=True, help="lines are added to this file")
args = parser.parse_args()
main()
