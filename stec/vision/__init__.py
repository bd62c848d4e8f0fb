"""Image S-TEC: crops and flips as affine actions, batched views with their actions, data, encoders."""
