"""Tasks: questions with known answers, from files, the CORE set or the hub, and the results of models on them."""
