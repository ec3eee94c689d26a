"""Asks about scenes that training never saw and counts the answers that are exactly right.

The pictures are drawn from a seed of their own, with sprites of their own, written as PNG files (96, 192 and
384 pixels), and asked about through the program: mmq run -m MODEL --mmproj FILE --image PNG -p QUESTION --json.
With --torch the dequantized weights of the same pair answer in PyTorch instead.
"""
import argparse
import concurrent.futures
import json
import os
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
SEED = 20_000


def held_out(folder, count):
    """Writes the pictures and questions.jsonl; returns its rows."""
    from scenes import Sprites, to_images
    from train import quiz
    os.makedirs(folder, exist_ok=True)
    rows = []
    # Most pictures have the model's own size; the others are drawn larger, so that they must be shrunk.
    for k, (px, share) in enumerate([(96, .6), (192, .2), (384, .2)]):
        pictures, asked = quiz(round(count * share), SEED + k, Sprites(SEED + k, 200, px // 3))
        for i, image in enumerate(to_images(pictures)):
            image.save(os.path.join(folder, f"{px}-{i:03}.png"))
        rows += [dict(image=f"{px}-{i:03}.png", kind=kind, question=q, answer=a) for i, kind, q, a in asked]
    with open(os.path.join(folder, "questions.jsonl"), "w") as f:
        f.writelines(json.dumps(r) + "\n" for r in rows)
    return rows


def sample(path):
    """A larger picture for demonstrations; returns what is right to say about it."""
    import torch
    from language import describe
    from scenes import Sprites, scenes, to_images
    pictures, shapes, colours = scenes(80, Sprites(7, 40, 128), torch.Generator().manual_seed(7))
    to_images(pictures[73:74])[0].save(path)
    return describe(shapes[73].tolist(), colours[73].tolist())


def with_program(rows, a):
    def ask(row):
        command = [a.mmq, "run", "-m", a.model, "--mmproj", a.mmproj, "--image", os.path.join(a.pictures, row["image"]),
                   "-p", row["question"], "-n", "64", "--temp", "0", "--json"]
        if a.image_tokens:
            command += ["--image-tokens", str(a.image_tokens), "--image-tokens-by", a.image_tokens_by]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        return json.loads(done.stdout)["text"].strip()
    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
        return list(pool.map(ask, rows))


def with_torch(rows, a):
    import numpy as np
    import torch
    from PIL import Image

    from export import read
    from model import CONFIG
    from train import Tokens, generate
    net = read(os.path.dirname(a.model))
    def load(name):
        im = Image.open(os.path.join(a.pictures, name)).convert("RGB")
        im = im.resize((CONFIG["image"],) * 2, Image.BICUBIC) if im.width != CONFIG["image"] else im
        return torch.from_numpy(np.asarray(im).copy()).permute(2, 0, 1) / 255
    return generate(net, Tokens(a.tokenizer), torch.stack([load(r["image"]) for r in rows]), [r["question"] for r in rows])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--mmq", default="mmq", help="the program")
    p.add_argument("--model", default=os.path.join(HERE, "nano.gguf"))
    p.add_argument("--mmproj", default=os.path.join(HERE, "mmproj-nano.gguf"))
    p.add_argument("--pictures", default="held-out", help="folder for the pictures")
    p.add_argument("--count", type=int, default=300, help="scenes")
    p.add_argument("--jobs", type=int, default=2, help="processes at a time")
    p.add_argument("--torch", action="store_true", help="answer in PyTorch; needs --tokenizer")
    p.add_argument("--tokenizer", default="run/nano.model")
    p.add_argument("--image-tokens", type=int, metavar="N", help="the option of that name of mmq run; the model makes 36")
    p.add_argument("--image-tokens-by", default="saliency", help="saliency, coverage or downsample")
    p.add_argument("--wrong", type=int, default=10, help="wrong answers to show")
    p.add_argument("--sample", metavar="PNG", help="only write the sample picture and print its description")
    a = p.parse_args()
    if a.sample:
        return print(sample(a.sample))
    rows = held_out(a.pictures, a.count)
    said = (with_torch if a.torch else with_program)(rows, a)
    tally = {}
    for row, text in zip(rows, said):
        right = text == row["answer"]
        for key in (row["kind"], "all", row["image"].split("-")[0] + " px"):
            n = tally.setdefault(key, [0, 0])
            n[0] += right
            n[1] += 1
        if not right and a.wrong > 0:
            a.wrong -= 1
            print(f"{row['image']}  {row['question']}\n  expected {row['answer']}\n  got      {text}")
    for key, (right, n) in tally.items():
        print(f"{key:9} {right:5} of {n:5}  {100 * right / n:5.1f} %")


if __name__ == "__main__":
    main()
