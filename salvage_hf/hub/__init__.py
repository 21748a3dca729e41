"""What goes to the Hugging Face Hub: cards and uploads."""
