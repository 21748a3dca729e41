"""What tests of all attribution methods share."""

#: Options that make a method fast enough for tests.
CHEAP = {
    "rise": {"budget": 40},
    "kernelshap": {"budget": 60},
    "svarm": {"budget": 100},
    "salvage_refined": {"budget": 40},
    "smoothgrad": {"num_samples": 3},
    "integrated_gradients": {"num_steps": 8},
}
