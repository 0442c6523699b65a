"""Esper's events as rows of the tables, for the trainer's backend and the importer alike.

update_clock    which run and which update an event belongs to
event_kinds     which value of which event is which column: the mapping as data
event_values    single values: plain, converted, checked against a column's type
event_batch     events of one shape as columns, with an account of every value
nested_values   heads, recurrent states, rewards, slots: what lies deeper in an event
event_mapping   events in, blocks of columns out
run_facts       what the events say about the run as a whole
"""
