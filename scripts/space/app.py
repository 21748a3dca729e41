"""The app as a Space, whose variables SALVAGE_MODEL and SALVAGE_CLASSIFIER name the models."""

import os

from salvage_hf.app.run import AppArguments, run_app

if __name__ == "__main__":
    run_app(AppArguments(os.environ["SALVAGE_MODEL"], os.environ.get("SALVAGE_CLASSIFIER")))
