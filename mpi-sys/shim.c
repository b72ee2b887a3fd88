#define MPI4TCH_DEFINE
#include "shim.h"
