"""How alike prompts are, and which groups are left out for it: prompts -> keys -> likely pairs -> exact comparison."""
