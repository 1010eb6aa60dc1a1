"""What goes in: captures of the user's, and synthetic worlds with exact ground truth."""
