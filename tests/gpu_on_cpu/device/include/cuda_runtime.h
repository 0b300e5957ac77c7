#pragma once  // everything it would bring is there without it
