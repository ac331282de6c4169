"""What ``preview`` and ``stats`` share: choosing records, counting in bounded memory, pages."""
