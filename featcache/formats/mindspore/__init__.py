"""MindSpore and MindSpore Lite: MindIR and .ms files, each made and run in an environment of its own."""
