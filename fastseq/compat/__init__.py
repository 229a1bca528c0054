"""Drop-in classes with the constructor and the call of existing code."""
