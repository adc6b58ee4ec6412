"""Problems that several tasks are settings of."""
