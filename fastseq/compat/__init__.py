"""Drop-in classes with the constructor and the call of the code that people have today."""
