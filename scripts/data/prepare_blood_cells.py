"""Makes a yes-or-no task with known regions from photographs of blood cells: does a crop show a platelet?

Takes an image folder in the form of `datasets`: its metadata.jsonl has a line per photograph, with "file_name" and
"objects", and these have "bbox" as [x, y, width, height] and "category". Writes OUTPUT/train and OUTPUT/val with a
folder per answer, and OUTPUT/val_masks with the regions of the validation crops. A photograph gives crops either to
train or to val.

python scripts/data/prepare_blood_cells.py --image_dir FOLDER --output_dir OUTPUT
"""

import argparse
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw
from tqdm.auto import tqdm

CLASSES = ("no platelet", "platelet")
Box = tuple[int, int, int, int]  # left, top, right, bottom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_dir", required=True, help="the folder of the photographs and of metadata.jsonl")
    parser.add_argument("--output_dir", required=True, help="where train/, val/ and val_masks/ are written")
    parser.add_argument("--category", default="Platelets", help="the category of the objects that are looked for")
    parser.add_argument("--crop_size", type=int, default=240, help="the side of a crop in pixels")
    parser.add_argument(
        "--crops_per_image", type=int, default=4, help="the most crops per photograph that show an object"
    )
    parser.add_argument(
        "--validation_share", type=float, default=0.25, help="the share of the photographs for validation"
    )
    parser.add_argument("--seed", type=int, default=0, help="the seed of everything random")
    args = parser.parse_args()
    existing = [name for name in ("train", "val", "val_masks") if Path(args.output_dir, name).exists()]
    if existing:
        parser.error(f"--output_dir {args.output_dir!r} holds {existing} already: crops of two runs must not mix")
    lines = Path(args.image_dir, "metadata.jsonl").read_text().splitlines()
    records = sorted((json.loads(line) for line in lines), key=lambda record: record["file_name"])
    if not any(args.category in record["objects"]["category"] for record in records):
        parser.error(f"--category {args.category!r} is in no image; there are {_categories(records)}")
    generator = random.Random(args.seed)
    generator.shuffle(records)
    num_validation = round(args.validation_share * len(records))
    counts = dict.fromkeys(((split, name) for split in ("train", "val") for name in CLASSES), 0)
    for number, record in enumerate(tqdm(records, desc="Cropping")):
        split = "val" if number < num_validation else "train"
        with Image.open(Path(args.image_dir, record["file_name"])) as opened:
            picture = opened.convert("RGB")
        objects = zip(record["objects"]["bbox"], record["objects"]["category"], strict=True)
        regions = [(x, y, x + w, y + h) for (x, y, w, h), category in objects if category == args.category]
        for answer, crops in enumerate(crops_of(picture.size, regions, args, generator)):
            for index, crop in enumerate(crops):
                folder = Path(args.output_dir, split, CLASSES[answer])
                name = f"{Path(record['file_name']).stem}_{index}.png"
                folder.mkdir(parents=True, exist_ok=True)
                picture.crop(crop).save(folder / name)
                counts[split, CLASSES[answer]] += 1
                if split == "val":
                    masks = Path(args.output_dir, "val_masks", CLASSES[answer])
                    masks.mkdir(parents=True, exist_ok=True)
                    mask_of(crop, regions).save(masks / name)
    for (split, name), count in counts.items():
        print(f"{split}: {count} of {name!r}")


def _categories(records: list[dict]) -> list[str]:
    return sorted({category for record in records for category in record["objects"]["category"]})


def crops_of(
    size: tuple[int, int], regions: list[Box], args: argparse.Namespace, generator: random.Random
) -> tuple[list[Box], list[Box]]:
    """Chooses the crops of one photograph at random.

    Args:
        size: width and height of the photograph.
        regions: the boxes of the objects that are looked for.
        args: `crop_size` and `crops_per_image`.
        generator: source of randomness.

    Returns:
        First, crops that touch no region: as many as there are crops with a region, but at least one, where the
        photograph has room. Second, crops that each show a different region as a whole, at most `crops_per_image`.
    """
    width, height = size
    if not 0 < args.crop_size <= min(size):
        raise ValueError(f"crop_size must be at most the side of a photograph, {min(size)}, got {args.crop_size}")
    without: list[Box] = []
    holding: list[Box] = []

    def crop_at(left: int, top: int) -> Box:
        return left, top, left + args.crop_size, top + args.crop_size

    for left, top, right, bottom in regions[: args.crops_per_image]:
        lowest = [max(0, end - args.crop_size) for end in (right, bottom)]
        highest = [
            min(start, whole - args.crop_size) for start, whole in zip((left, top), (width, height), strict=True)
        ]
        if lowest[0] <= highest[0] and lowest[1] <= highest[1]:  # else no crop within the photograph holds it whole
            holding.append(crop_at(*(generator.randint(a, b) for a, b in zip(lowest, highest, strict=True))))
    for _ in range(50):  # tries: a photograph may have no place without a region
        crop = crop_at(generator.randint(0, width - args.crop_size), generator.randint(0, height - args.crop_size))
        if len(without) < max(1, len(holding)) and not any(_overlap(crop, region) for region in regions):
            without.append(crop)
    return without, holding


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def mask_of(crop: Box, regions: list[Box]) -> Image.Image:
    """The regions within a crop, white on black, as a picture of the crop's size."""
    mask = Image.new("L", (crop[2] - crop[0], crop[3] - crop[1]))
    draw = ImageDraw.Draw(mask)
    for left, top, right, bottom in regions:
        box = left - crop[0], top - crop[1], right - crop[0] - 1, bottom - crop[1] - 1
        if box[2] >= 0 and box[3] >= 0:
            draw.rectangle(box, fill=255)
    return mask


if __name__ == "__main__":
    main()
