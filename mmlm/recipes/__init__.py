"""What a training's recipe says."""
