"""The same question, put by everyone who is compared; a module for each environment it needs."""
