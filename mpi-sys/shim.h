/* What mpi.h offers as macros only, and bindgen therefore cannot see: the
 * predefined handles and addresses, and functions that are macros in one
 * implementation or another. Each NAME in macros.h becomes an object or function
 * mpi4tch_NAME, which the build script binds as NAME. MPI4TCH_HEADER is the header
 * of MPI.
 *
 * This file is read twice: by bindgen for the declarations, and by shim.c, with
 * MPI4TCH_DEFINE, for the definitions.
 */
#ifndef MPI4TCH_SHIM_H
#define MPI4TCH_SHIM_H

#include MPI4TCH_HEADER
#include <stddef.h>

#ifdef MPI4TCH_DEFINE
#define CONSTANT(type, name) type const mpi4tch_##name = name;
#define INTEGER(type, name)
#define FUNCTION(type, name, parameters, call) \
  type mpi4tch_##name parameters { return call; }
#else
#define CONSTANT(type, name) extern type const mpi4tch_##name;
/* bindgen reads the value. */
#define INTEGER(type, name) static type const mpi4tch_##name = name;
#define FUNCTION(type, name, parameters, call) type mpi4tch_##name parameters;
#endif

/* The integer of Fortran: a macro in Open MPI, a type in MPICH, and none in the standard's ABI. */
#ifdef MPI4TCH_ABI
typedef int mpi4tch_MPI_Fint;
#elif defined(MPI_Fint)
typedef MPI_Fint mpi4tch_MPI_Fint;
#endif

/* Integers that have the same size in all implementations, but not the same C
 * type: the build script gives each the Rust type of that size. */
_Static_assert(sizeof(MPI_Aint) == sizeof(void *), "MPI_Aint is isize");
_Static_assert(sizeof(MPI_Count) == 8, "MPI_Count is i64");
_Static_assert(sizeof(MPI_Offset) == 8, "MPI_Offset is i64");

#ifdef MPI4TCH_ABI
/* The standard's ABI converts handles from and to int. */
#define CONVERT(type, handle)                                                  \
  FUNCTION(int, MPI_##handle##_c2f, (type value), MPI_##handle##_toint(value)) \
  FUNCTION(type, MPI_##handle##_f2c, (int value), MPI_##handle##_fromint(value))
CONVERT(MPI_Comm, Comm)
CONVERT(MPI_Datatype, Type)
CONVERT(MPI_Errhandler, Errhandler)
CONVERT(MPI_File, File)
CONVERT(MPI_Group, Group)
CONVERT(MPI_Info, Info)
CONVERT(MPI_Message, Message)
CONVERT(MPI_Op, Op)
CONVERT(MPI_Request, Request)
CONVERT(MPI_Session, Session)
CONVERT(MPI_Win, Win)
#undef CONVERT
#endif

/* A line for each macro: CONSTANT or INTEGER for those that are casts, FUNCTION for those
 * with arguments. Made by build/macros.rs. */
#include "macros.h"

#undef CONSTANT
#undef INTEGER
#undef FUNCTION

#endif
