"""From a folder to a repository on the Hub: what belongs, what must not leave, and one commit."""
