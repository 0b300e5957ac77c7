"""What the engine persistent is made of: tiles, blocks, places of steps, products of gradients."""
