"""The verbs of the command line, a module for each kind: each verb parses, calls one library function, and prints."""
