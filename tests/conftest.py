from hypothesis import settings
from slime_train.runtime import env

# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("slime", deadline=None)
settings.load_profile("slime")
env.prepare()  # before any test imports Ray
