"""Makes the pictures of the course: four kinds of patterns, 32 x 32 pixels, in folders as torchvision's ImageFolder reads them.

    python make_pictures.py /mnt/pictures

The standard library is enough: a PNG file is a header, packed rows of pixels and two checksums.
"""
import argparse
import pathlib
import random
import struct
import zlib

SIZE = 32

# Whether a pixel belongs to the pattern; `w` is its width and (a, b) where it lies.
PATTERNS = {
    "checks": lambda x, y, w, a, b: ((x + a) // w + (y + b) // w) % 2 == 0,
    "columns": lambda x, y, w, a, b: (x + a) // w % 2 == 0,
    "rings": lambda x, y, w, a, b: int(((x - 10 - a) ** 2 + (y - 10 - b) ** 2) ** 0.5) // w % 2 == 0,
    "rows": lambda x, y, w, a, b: (y + b) // w % 2 == 0,
}


def png(pixels):
    """A PNG file of SIZE rows, each of SIZE colours (red, green, blue)."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(value for colour in row for value in colour) for row in pixels)
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)  # 8 bits a colour, no alpha
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def picture(kind, rng):
    """One picture: two colours of its own, a width and a place of its own, and noise on top."""
    colours = [[rng.randrange(256) for _ in range(3)] for _ in range(2)]
    width, a, b = rng.randint(3, 6), rng.randrange(12), rng.randrange(12)

    def pixel(x, y):
        colour = colours[PATTERNS[kind](x, y, width, a, b)]
        return [min(255, max(0, value + rng.randint(-24, 24))) for value in colour]

    return png([[pixel(x, y) for x in range(SIZE)] for y in range(SIZE)])


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("folder", type=pathlib.Path)
    args.add_argument("--training", type=int, default=64, help="pictures of each kind to learn from")
    args.add_argument("--validation", type=int, default=16, help="pictures of each kind to be judged by")
    args = args.parse_args()

    rng = random.Random(11)  # the same pictures on every machine
    for part, count in (("training", args.training), ("validation", args.validation)):
        for kind in PATTERNS:
            folder = args.folder / part / kind
            folder.mkdir(parents=True, exist_ok=True)
            for n in range(count):
                (folder / f"{n}.png").write_bytes(picture(kind, rng))
    print(f"{(args.training + args.validation) * len(PATTERNS)} pictures of {len(PATTERNS)} kinds in {args.folder}")


if __name__ == "__main__":
    main()
