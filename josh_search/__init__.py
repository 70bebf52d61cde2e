"""JOSH: tree search for dialogues that earn the reward, and training rows from them."""
