"""What is in a dataset, for people: reports, contact sheets, pages of episodes."""
