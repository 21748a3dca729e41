"""The console command `salvage`."""

import argparse
import sys

from .evaluate_modules.registration import seed_module_cache


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="salvage", description="Faithful explanations of image classifiers.")
    commands = parser.add_subparsers(dest="command", required=True)

    explain = commands.add_parser("explain", help="draw the maps of a model's most probable classes over images")
    explain.add_argument("images", nargs="+", metavar="IMAGE", help="image files or folders")
    explain.add_argument("--model", required=True, help="a Salvage model: a folder, or a name on the Hub")
    explain.add_argument("--output", default="explanations", help="a PNG file for one image, a folder for several")
    explain.add_argument("--top", type=int, default=3, help="how many classes are shown, the most probable first")

    demo = commands.add_parser(
        "demo", help="run the whole method on a small data set that it generates; takes a few minutes"
    )
    demo.add_argument("--output_dir", default="demo_output", help="the folder for data, models and the page")
    demo.add_argument("--seed", type=int, default=0, help="the seed of everything random")

    commands.add_parser("install-metrics", help="make evaluate.load find the metrics without importing salvage_hf")

    options = parser.parse_args(arguments)
    try:
        if options.command == "explain":
            from .explain import explain_files  # matplotlib is an extra

            written, failed = explain_files(options.images, options.model, options.output, options.top)
            for path in written:
                print(path)
            for message in failed:
                print(f"skipped {message}", file=sys.stderr)
            return 1 if failed else 0
        if options.command == "demo":
            from .demo import run_demo

            run_demo(options.output_dir, options.seed)
        else:
            seed_module_cache()
    except (ValueError, OSError) as error:
        print(f"salvage {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
