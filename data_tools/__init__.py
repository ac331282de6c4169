"""Raw data sets to shards: ``python -m data_tools VERB``.

Verbs: ``convert``, ``index``, ``lint``, ``info``, ``stats``, ``preview``, ``scenes``.
"""
