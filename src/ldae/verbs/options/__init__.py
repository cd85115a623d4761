"""Options of every verb; `ldae.verbs` lists them."""
