from slime_train.runtime import env

env.prepare()  # before any test imports Ray
