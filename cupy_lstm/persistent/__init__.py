"""What the engine persistent is made of: tiers and their launches, places of steps, gradients."""
