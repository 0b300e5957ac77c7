"""What the scripts that compare with other libraries share."""
