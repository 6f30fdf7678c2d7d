"""Speech and its transcripts: from files, tables and the Hub to the tensors of a batch."""
