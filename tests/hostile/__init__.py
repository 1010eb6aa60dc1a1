"""Files as an enemy, or a full disk, would leave them: a case is a name and a function that writes it."""
