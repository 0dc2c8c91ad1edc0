ERRATA={}
class Erratum: pass
