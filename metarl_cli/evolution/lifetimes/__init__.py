"""How an individual of evolution learns the task it is put to."""
