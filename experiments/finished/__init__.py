"""What is done with a finished run: certify, export, describe, recommend; and with lists of other systems."""
