"""One run's life: started or resumed, trained, checkpointed, measured, recorded; and what is made of it afterwards."""
