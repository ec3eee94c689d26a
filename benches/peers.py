"""Runs mmq, llama.cpp and ik_llama.cpp in turns on the same files and prints medians and ratios.

    python benches/random_model.py --shape 1.1b --type Q4_0 --type Q4_K_M --type Q8_0 --out DIR
    python benches/random_model.py --shape 7b --type Q4_0 --type Q4_K --out DIR
    python benches/peers.py --models DIR --mmq target/release/mmq --llama BIN_DIR --ik BIN_DIR --image cat.jpg

A BIN_DIR holds llama-bench and llama-mtmd-cli. ik_llama.cpp runs twice, plain and with `-rtr 1`. Files that DIR lacks are left
out. Every figure is the median over all rounds; a round runs each program once, one after the other. A run during which something
else used the processors is repeated (--patience), and standard error says so. Linux only; needs nothing but Python.
"""

import argparse
import json
import os
import re
import selectors
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

WORDS = " ".join(f"w{i}" for i in range(1, 11))  # one token each in random_model.py's vocabulary
TEXT = [  # what, file, tokens of the prompt, tokens to write, whether a warm-up would take too long
    ("SmolLM2-135M Q4_1", "SmolLM2-135M-Instruct.Q4_1.gguf", 512, 64, False),
    ("1.1B shape Q4_0", "1.1b-Q4_0.gguf", 512, 32, False),
    ("1.1B shape Q4_K_M", "1.1b-Q4_K_M.gguf", 512, 32, False),
    ("1.1B shape Q8_0", "1.1b-Q8_0.gguf", 512, 32, False),
    ("7B shape Q4_0", "7b-Q4_0.gguf", 256, 16, True),
    ("7B shape Q4_K", "7b-Q4_K.gguf", 256, 16, True),
]
COLUMNS = ["mmq", "llama.cpp", "ik", "ik -rtr 1"]


def processor():
    """Ticks of all processors since the start: (all, stolen by the host, idle)."""
    ticks = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks), ticks[7], ticks[3] + ticks[4]


class Failed(Exception):
    """A program did not do its work; the other cases go on."""


class Ran:
    """A finished program: what it wrote, when, and what it took. Runs that others disturb are repeated, within reason."""

    def __init__(self, command):
        time.sleep(args.pause)
        for _ in range(1 + args.patience):
            self.run(command)
            if self.steal <= 0.03 and self.others <= 0.08:
                return
            print(f"  disturbed: {self.steal:.0%} stolen, {self.others:.0%} used by others", file=sys.stderr, flush=True)

    def run(self, command):
        before, chunks = processor(), []
        # The clock starts with the first output, since a wrapper may make the program wait.
        child = subprocess.Popen(wrap + command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        streams = selectors.DefaultSelector()
        streams.register(child.stdout, selectors.EVENT_READ, "out")
        streams.register(child.stderr, selectors.EVENT_READ, "err")
        pid = 0
        while streams.get_map() and not pid:
            # What a program leaves in the background may hold its output open.
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            while ready := streams.select(0 if pid else 0.1):
                for key, _ in ready:
                    if data := os.read(key.fd, 65536):
                        before = before if chunks else processor()
                        chunks.append((time.monotonic(), key.data, data.decode(errors="replace")))
                    else:
                        streams.unregister(key.fileobj)
        after = processor()
        if not pid:
            _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        self.chunks = chunks
        self.out = "".join(text for _, stream, text in chunks if stream == "out")
        self.err = "".join(text for _, stream, text in chunks if stream == "err")
        self.peak = usage.ru_maxrss * 1024
        if child.returncode != 0:
            raise Failed(f"{shlex.join(command)}: exit status {child.returncode}\n{self.err[-2000:]}")
        total, steal, idle = (b - a for a, b in zip(before, after))
        own = (usage.ru_utime + usage.ru_stime) * os.sysconf("SC_CLK_TCK")
        self.steal, self.others = steal / max(total, 1), max(0, total - idle - steal - own) / max(total, 1)

    def at(self, pattern, stream=None):
        """When text that matches was complete, in seconds after the first output; None if it never came."""
        seen = {"out": "", "err": ""}
        for when, name, text in self.chunks:
            seen[name] += text
            if stream in (None, name) and re.search(pattern, seen[name], re.MULTILINE):
                return when - self.chunks[0][0]
        return None


def samples(what, name, value):
    found.setdefault(what, {}).setdefault(name, []).append(value)


def text_case(what, file, n_prompt, n_gen, long):
    """Prefill and decoding by each program's own benchmark; the flags are the same in all of them."""
    prefill, decode = "prefill" in only, "decode" in only
    n_prompt = args.long_prompt if long else n_prompt
    command = ["-m", file, "-p", str(n_prompt * prefill), "-n", str(n_gen * decode), "-t", str(args.threads)]
    cold = long and prefill
    command += ["-r", str(1 if long else args.repetitions), "-o", "json"]
    for name, program in benches.items():
        skip = [] if not cold else ["-w", "0"] if name.startswith("ik") else ["--no-warmup"]
        report = Ran(program + command + skip).out
        for row in json.loads(report[report.index("[") :]):
            kind = f"prefill {n_prompt}" if row["n_prompt"] else f"decode {n_gen}"
            for sample in row["samples_ts"]:
                samples((f"{kind}, {what}", "tokens/s"), name, sample)
            note(name, f"{kind}, {what}", found[f"{kind}, {what}", "tokens/s"][name])


def encode_case(model, mmproj):
    """A picture through the encoder and projector, warmed up by each program in its way."""
    what = ("encode ViT-L/14-336 + projector, one picture", "s")
    for name, program in viewers.items():
        if name == "mmq":
            flags = ["--image", args.image, "--image-prompt", "", "-p", "0", "-n", "0", "-r", str(args.repetitions)]
            rows = json.loads(Ran(benches[name] + ["-m", model, "--mmproj", mmproj, "-t", str(args.threads), "-o", "json"] + flags).out)
            for sample in rows[0]["samples_ns"]:
                samples(what, name, sample / 1e9)
        else:
            ran = Ran(program + look(model, mmproj))
            samples(what, name, encoded_in(ran))
        note(name, what[0], found[what][name])


def look(model, mmproj):
    command = ["-m", model, "--mmproj", mmproj, "--image", args.image, "-p", WORDS]
    return command + ["-n", "1", "-t", str(args.threads), "--temp", "0"]


def encoded_in(ran):
    found = re.search(r"encod(?:ed|ing done) in (\d+) ms", ran.out + ran.err)
    if not found:
        raise Failed(f"no time of encoding in:\n{ran.out[-1000:]}\n{ran.err[-2000:]}")
    return int(found[1]) / 1e3


def first_token_case(shape, model, mmproj):
    """Picture and words to the first token from a loaded model; start-up and memory of the same run."""
    what = f"{shape} LLaVA, picture and 10 words"
    for name, program in viewers.items():
        variants = [(what, [])]
        if name == "mmq" and "--image-tokens" in subprocess.run([args.mmq, "run", "--help"], capture_output=True, text=True).stdout:
            variants.append((f"{what}, --image-tokens 128", ["--image-tokens", "128"]))
        for what_here, flags in variants:
            ran = Ran(program + look(model, mmproj) + flags)
            if name == "mmq":
                timings = json.loads(ran.out)["timings"]
                work = sum(timings[f"{key}_ms"] for key in ("image_decode", "encode", "prefill"))
                ready, first = timings["load_ms"] / 1e3, (timings["first_token_ms"] or work) / 1e3
            else:
                ready = ran.at(r"main: loading model|warmup: flash attention is")
                token = ran.at(r"\A(?:(?:encoding|image|decoding|main|build|\s*\d+:)[^\n]*\n|\s)*[^\s\d:]+ ?(?!.*\n)", "out")
                end = token if token is not None else ran.at(r"llama_print_timings: +load time")
                first = (end or ran.chunks[-1][0] - ran.chunks[0][0]) - (ready or 0)
            samples((f"{what_here}: to the first token", "s"), name, first)
            samples((f"{what_here}: peak resident", "GB"), name, ran.peak / 1e9)
            samples((f"{what_here}: start to first prefill", "s"), name, ready or 0)
            note(name, what_here, [ready or 0, first, ran.peak / 1e9])


def note(name, what, values):
    print(f"  {name:10} {what}: {' '.join(f'{value:.3g}' for value in values)}", file=sys.stderr, flush=True)


def table():
    """Medians, and how many times better mmq is; below 1 it is worse."""
    lines = ["| work | unit | " + " | ".join(COLUMNS) + " | mmq : llama.cpp | mmq : ik |", "|---|---|" + "---|" * (len(COLUMNS) + 2)]
    records = []
    for (what, unit), programs in found.items():
        medians = {name: statistics.median(values) for name, values in programs.items()}
        more_is_better = unit == "tokens/s"

        def ratio(peers):
            values = [medians[peer] for peer in peers if peer in medians]
            if "mmq" not in medians or not values:
                return ""
            best = max(values) if more_is_better else min(values)
            return f"{medians['mmq'] / best if more_is_better else best / max(medians['mmq'], 1e-9):.2f}"

        cells = [f"{medians[name]:.3g}" if name in medians else "" for name in COLUMNS]
        lines.append("| " + " | ".join([what, unit] + cells + [ratio(["llama.cpp"]), ratio(["ik", "ik -rtr 1"])]) + " |")
        n = min(len(values) for values in programs.values())
        records.append("\t".join([what] + cells + [unit, str(n), f"median, programs in turns, {args.threads} threads{args.label}"]))
    print("\n".join(lines))
    if args.tsv:
        new = not args.tsv.exists()
        with args.tsv.open("a") as file:
            if new:
                file.write("\t".join(["what"] + COLUMNS + ["unit", "runs", "how"]) + "\n")
            file.write("\n".join(records) + "\n")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--models", type=Path, required=True, help="folder with the files of random_model.py, and SmolLM2's if wanted")
parser.add_argument("--mmq", help="the program mmq")
parser.add_argument("--load-mode", default="repack", help="how mmq takes its weights into memory")
parser.add_argument("--llama", type=Path, help="folder with llama.cpp's programs")
parser.add_argument("--ik", type=Path, help="folder with ik_llama.cpp's programs")
parser.add_argument("--image", help="picture for encode and ttft")
parser.add_argument("--only", default="decode,prefill,encode,ttft", help="some of decode,prefill,encode,ttft")
parser.add_argument("--case", default="", help="only files with this in their name")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--repetitions", type=int, default=2, help="within a round, of what is short")
parser.add_argument("--patience", type=int, default=2, help="how often a disturbed run is repeated")
parser.add_argument("--long-prompt", type=int, default=256, help="tokens of prompts that take long")
parser.add_argument("--pause", type=float, default=0, help="seconds before each run")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--wrap", default="", help="command to run each program through: 'taskset -c 0,1'")
parser.add_argument("--tsv", type=Path, help="file to append a line for each figure to")
parser.add_argument("--label", default="", help="what the lines of --tsv say at their end")
args = parser.parse_args()
only, wrap, found = args.only.split(","), shlex.split(args.wrap), {}
args.label = f"; {args.label}" if args.label else ""
if unknown := set(only) - {"decode", "prefill", "encode", "ttft"}:
    parser.error(f"--only {','.join(unknown)}: expected some of decode,prefill,encode,ttft")
if not args.image and {"encode", "ttft"} & set(only):
    parser.error("encode and ttft need --image")

benches, viewers = {}, {}
if args.mmq:
    benches["mmq"] = [args.mmq, "bench", "--load-mode", args.load_mode]
    viewers["mmq"] = [args.mmq, "run", "--json", "--load-mode", args.load_mode]
if args.llama:
    benches["llama.cpp"] = [str(args.llama / "llama-bench")]
    viewers["llama.cpp"] = [str(args.llama / "llama-mtmd-cli"), "--jinja"]
if args.ik:
    benches["ik"] = [str(args.ik / "llama-bench")]
    benches["ik -rtr 1"] = [str(args.ik / "llama-bench"), "-rtr", "1"]
    viewers["ik"] = [str(args.ik / "llama-mtmd-cli"), "--jinja"]
    viewers["ik -rtr 1"] = [str(args.ik / "llama-mtmd-cli"), "--jinja", "-rtr"]


def present(*names):
    paths = [args.models / name for name in names]
    return [str(path) for path in paths] if all(path.exists() for path in paths) and args.case in names[0] else None


def case(run, *arguments):
    try:
        run(*arguments)
    except Failed as error:
        print(f"  {error}", file=sys.stderr, flush=True)


try:
    for turn in range(args.rounds):
        print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
        for what, file, n_prompt, n_gen, long in TEXT:
            if {"decode", "prefill"} & set(only) and (paths := present(file)):
                case(text_case, what, paths[0], n_prompt, n_gen, long)
        if "encode" in only and (paths := present("1.1b-Q4_0.gguf", "mmproj-1.1b-F16.gguf")):
            case(encode_case, *paths)
        if "ttft" in only:
            for shape in ("7b", "1.1b"):
                if paths := present(f"{shape}-Q4_0.gguf", f"mmproj-{shape}-F16.gguf"):
                    case(first_token_case, shape.upper(), *paths)
                    break
except KeyboardInterrupt:
    pass
table()
