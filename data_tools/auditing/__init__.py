"""The leak audit's parts: which photos are protected, and where they are found again."""
