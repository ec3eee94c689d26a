#include "../../../mmq.h"
