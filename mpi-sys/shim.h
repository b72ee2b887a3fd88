/* What mpi.h offers as macros only, and bindgen therefore cannot see: the
 * predefined handles and addresses, and functions that are macros in one
 * implementation or another. Each NAME below becomes an object or function
 * mpi4tch_NAME, which the build script binds as NAME.
 *
 * This file is read twice: by bindgen for the declarations, and by shim.c, with
 * MPI4TCH_DEFINE, for the definitions.
 */
#ifndef MPI4TCH_SHIM_H
#define MPI4TCH_SHIM_H

#include <mpi.h>
#include <stddef.h>

#ifdef MPI4TCH_DEFINE
#define CONSTANT(type, name) type const mpi4tch_##name = name;
#define FUNCTION(type, name, parameters, call) \
  type mpi4tch_##name parameters { return call; }
#else
#define CONSTANT(type, name) extern type const mpi4tch_##name;
#define FUNCTION(type, name, parameters, call) type mpi4tch_##name parameters;
#endif

/* The integer of Fortran: a macro in Open MPI, a type in MPICH. */
#ifdef MPI_Fint
typedef MPI_Fint mpi4tch_MPI_Fint;
#endif

/* Integers that have the same size in all implementations, but not the same C
 * type: the build script gives each the Rust type of that size. */
_Static_assert(sizeof(MPI_Aint) == sizeof(void *), "MPI_Aint is isize");
_Static_assert(sizeof(MPI_Count) == 8, "MPI_Count is i64");
_Static_assert(sizeof(MPI_Offset) == 8, "MPI_Offset is i64");

/* Handles of communicators, groups and the rest. */
CONSTANT(MPI_Comm, MPI_COMM_NULL)
CONSTANT(MPI_Comm, MPI_COMM_SELF)
CONSTANT(MPI_Comm, MPI_COMM_WORLD)
CONSTANT(MPI_Errhandler, MPI_ERRHANDLER_NULL)
CONSTANT(MPI_Errhandler, MPI_ERRORS_ARE_FATAL)
CONSTANT(MPI_Errhandler, MPI_ERRORS_RETURN)
CONSTANT(MPI_File, MPI_FILE_NULL)
CONSTANT(MPI_Group, MPI_GROUP_EMPTY)
CONSTANT(MPI_Group, MPI_GROUP_NULL)
CONSTANT(MPI_Info, MPI_INFO_ENV)
CONSTANT(MPI_Info, MPI_INFO_NULL)
CONSTANT(MPI_Message, MPI_MESSAGE_NO_PROC)
CONSTANT(MPI_Message, MPI_MESSAGE_NULL)
CONSTANT(MPI_Request, MPI_REQUEST_NULL)
CONSTANT(MPI_Win, MPI_WIN_NULL)
#ifdef MPI_ERRORS_ABORT
CONSTANT(MPI_Errhandler, MPI_ERRORS_ABORT)
#endif
#ifdef MPI_SESSION_NULL
CONSTANT(MPI_Session, MPI_SESSION_NULL)
#endif

/* Reductions. */
CONSTANT(MPI_Op, MPI_BAND)
CONSTANT(MPI_Op, MPI_BOR)
CONSTANT(MPI_Op, MPI_BXOR)
CONSTANT(MPI_Op, MPI_LAND)
CONSTANT(MPI_Op, MPI_LOR)
CONSTANT(MPI_Op, MPI_LXOR)
CONSTANT(MPI_Op, MPI_MAX)
CONSTANT(MPI_Op, MPI_MAXLOC)
CONSTANT(MPI_Op, MPI_MIN)
CONSTANT(MPI_Op, MPI_MINLOC)
CONSTANT(MPI_Op, MPI_NO_OP)
CONSTANT(MPI_Op, MPI_OP_NULL)
CONSTANT(MPI_Op, MPI_PROD)
CONSTANT(MPI_Op, MPI_REPLACE)
CONSTANT(MPI_Op, MPI_SUM)

/* Datatypes of C. */
CONSTANT(MPI_Datatype, MPI_AINT)
CONSTANT(MPI_Datatype, MPI_BYTE)
CONSTANT(MPI_Datatype, MPI_CHAR)
CONSTANT(MPI_Datatype, MPI_COUNT)
CONSTANT(MPI_Datatype, MPI_C_BOOL)
CONSTANT(MPI_Datatype, MPI_C_COMPLEX)
CONSTANT(MPI_Datatype, MPI_C_DOUBLE_COMPLEX)
CONSTANT(MPI_Datatype, MPI_C_FLOAT_COMPLEX)
CONSTANT(MPI_Datatype, MPI_C_LONG_DOUBLE_COMPLEX)
CONSTANT(MPI_Datatype, MPI_DATATYPE_NULL)
CONSTANT(MPI_Datatype, MPI_DOUBLE)
CONSTANT(MPI_Datatype, MPI_FLOAT)
CONSTANT(MPI_Datatype, MPI_INT)
CONSTANT(MPI_Datatype, MPI_INT16_T)
CONSTANT(MPI_Datatype, MPI_INT32_T)
CONSTANT(MPI_Datatype, MPI_INT64_T)
CONSTANT(MPI_Datatype, MPI_INT8_T)
CONSTANT(MPI_Datatype, MPI_LONG)
CONSTANT(MPI_Datatype, MPI_LONG_DOUBLE)
CONSTANT(MPI_Datatype, MPI_LONG_LONG)
CONSTANT(MPI_Datatype, MPI_LONG_LONG_INT)
CONSTANT(MPI_Datatype, MPI_OFFSET)
CONSTANT(MPI_Datatype, MPI_PACKED)
CONSTANT(MPI_Datatype, MPI_SHORT)
CONSTANT(MPI_Datatype, MPI_SIGNED_CHAR)
CONSTANT(MPI_Datatype, MPI_UINT16_T)
CONSTANT(MPI_Datatype, MPI_UINT32_T)
CONSTANT(MPI_Datatype, MPI_UINT64_T)
CONSTANT(MPI_Datatype, MPI_UINT8_T)
CONSTANT(MPI_Datatype, MPI_UNSIGNED)
CONSTANT(MPI_Datatype, MPI_UNSIGNED_CHAR)
CONSTANT(MPI_Datatype, MPI_UNSIGNED_LONG)
CONSTANT(MPI_Datatype, MPI_UNSIGNED_LONG_LONG)
CONSTANT(MPI_Datatype, MPI_UNSIGNED_SHORT)
CONSTANT(MPI_Datatype, MPI_WCHAR)

/* Pairs for MPI_MAXLOC and MPI_MINLOC. */
CONSTANT(MPI_Datatype, MPI_2INT)
CONSTANT(MPI_Datatype, MPI_DOUBLE_INT)
CONSTANT(MPI_Datatype, MPI_FLOAT_INT)
CONSTANT(MPI_Datatype, MPI_LONG_DOUBLE_INT)
CONSTANT(MPI_Datatype, MPI_LONG_INT)
CONSTANT(MPI_Datatype, MPI_SHORT_INT)

/* Datatypes of C++; MPI_DATATYPE_NULL if MPI was built without C++. */
CONSTANT(MPI_Datatype, MPI_CXX_BOOL)
CONSTANT(MPI_Datatype, MPI_CXX_DOUBLE_COMPLEX)
CONSTANT(MPI_Datatype, MPI_CXX_FLOAT_COMPLEX)
CONSTANT(MPI_Datatype, MPI_CXX_LONG_DOUBLE_COMPLEX)

/* Datatypes of Fortran. */
CONSTANT(MPI_Datatype, MPI_2DOUBLE_PRECISION)
CONSTANT(MPI_Datatype, MPI_2INTEGER)
CONSTANT(MPI_Datatype, MPI_2REAL)
CONSTANT(MPI_Datatype, MPI_CHARACTER)
CONSTANT(MPI_Datatype, MPI_COMPLEX)
CONSTANT(MPI_Datatype, MPI_DOUBLE_COMPLEX)
CONSTANT(MPI_Datatype, MPI_DOUBLE_PRECISION)
CONSTANT(MPI_Datatype, MPI_INTEGER)
CONSTANT(MPI_Datatype, MPI_LOGICAL)
CONSTANT(MPI_Datatype, MPI_REAL)
/* Those of a given size exist if the Fortran compiler had the type. */
#ifdef MPI_COMPLEX4
CONSTANT(MPI_Datatype, MPI_COMPLEX4)
#endif
#ifdef MPI_COMPLEX8
CONSTANT(MPI_Datatype, MPI_COMPLEX8)
#endif
#ifdef MPI_COMPLEX16
CONSTANT(MPI_Datatype, MPI_COMPLEX16)
#endif
#ifdef MPI_COMPLEX32
CONSTANT(MPI_Datatype, MPI_COMPLEX32)
#endif
#ifdef MPI_INTEGER1
CONSTANT(MPI_Datatype, MPI_INTEGER1)
#endif
#ifdef MPI_INTEGER2
CONSTANT(MPI_Datatype, MPI_INTEGER2)
#endif
#ifdef MPI_INTEGER4
CONSTANT(MPI_Datatype, MPI_INTEGER4)
#endif
#ifdef MPI_INTEGER8
CONSTANT(MPI_Datatype, MPI_INTEGER8)
#endif
#ifdef MPI_INTEGER16
CONSTANT(MPI_Datatype, MPI_INTEGER16)
#endif
#ifdef MPI_LOGICAL1
CONSTANT(MPI_Datatype, MPI_LOGICAL1)
#endif
#ifdef MPI_LOGICAL2
CONSTANT(MPI_Datatype, MPI_LOGICAL2)
#endif
#ifdef MPI_LOGICAL4
CONSTANT(MPI_Datatype, MPI_LOGICAL4)
#endif
#ifdef MPI_LOGICAL8
CONSTANT(MPI_Datatype, MPI_LOGICAL8)
#endif
#ifdef MPI_LOGICAL16
CONSTANT(MPI_Datatype, MPI_LOGICAL16)
#endif
#ifdef MPI_REAL2
CONSTANT(MPI_Datatype, MPI_REAL2)
#endif
#ifdef MPI_REAL4
CONSTANT(MPI_Datatype, MPI_REAL4)
#endif
#ifdef MPI_REAL8
CONSTANT(MPI_Datatype, MPI_REAL8)
#endif
#ifdef MPI_REAL16
CONSTANT(MPI_Datatype, MPI_REAL16)
#endif

/* Extensions: half precision. */
#ifdef MPIX_C_FLOAT16
CONSTANT(MPI_Datatype, MPIX_C_FLOAT16)
#endif
#ifdef MPIX_C_BF16
CONSTANT(MPI_Datatype, MPIX_C_BF16)
#endif
#ifdef MPIX_SHORT_FLOAT
CONSTANT(MPI_Datatype, MPIX_SHORT_FLOAT)
#endif

/* Addresses that stand for something else than a buffer. */
CONSTANT(char **, MPI_ARGV_NULL)
CONSTANT(char ***, MPI_ARGVS_NULL)
CONSTANT(void *, MPI_BOTTOM)
CONSTANT(int *, MPI_ERRCODES_IGNORE)
CONSTANT(void *, MPI_IN_PLACE)
CONSTANT(MPI_Status *, MPI_STATUSES_IGNORE)
CONSTANT(MPI_Status *, MPI_STATUS_IGNORE)
/* In MPICH these are objects, which bindgen sees. */
#ifdef MPI_UNWEIGHTED
CONSTANT(int *, MPI_UNWEIGHTED)
#endif
#ifdef MPI_WEIGHTS_EMPTY
CONSTANT(int *, MPI_WEIGHTS_EMPTY)
#endif
#ifdef MPI_BUFFER_AUTOMATIC
CONSTANT(void *, MPI_BUFFER_AUTOMATIC)
#endif

/* Functions that copy and delete attributes. */
CONSTANT(MPI_Comm_copy_attr_function *, MPI_COMM_DUP_FN)
CONSTANT(MPI_Comm_copy_attr_function *, MPI_COMM_NULL_COPY_FN)
CONSTANT(MPI_Comm_delete_attr_function *, MPI_COMM_NULL_DELETE_FN)
CONSTANT(MPI_Datarep_conversion_function *, MPI_CONVERSION_FN_NULL)
CONSTANT(MPI_Type_copy_attr_function *, MPI_TYPE_DUP_FN)
CONSTANT(MPI_Type_copy_attr_function *, MPI_TYPE_NULL_COPY_FN)
CONSTANT(MPI_Type_delete_attr_function *, MPI_TYPE_NULL_DELETE_FN)
CONSTANT(MPI_Win_copy_attr_function *, MPI_WIN_DUP_FN)
CONSTANT(MPI_Win_copy_attr_function *, MPI_WIN_NULL_COPY_FN)
CONSTANT(MPI_Win_delete_attr_function *, MPI_WIN_NULL_DELETE_FN)

/* Handles of the tools interface. */
CONSTANT(MPI_T_cvar_handle, MPI_T_CVAR_HANDLE_NULL)
CONSTANT(MPI_T_enum, MPI_T_ENUM_NULL)
CONSTANT(MPI_T_pvar_handle, MPI_T_PVAR_HANDLE_NULL)
CONSTANT(MPI_T_pvar_session, MPI_T_PVAR_SESSION_NULL)
#ifdef MPI_T_PVAR_ALL_HANDLES
CONSTANT(MPI_T_pvar_handle, MPI_T_PVAR_ALL_HANDLES)
#endif

/* Arithmetic on addresses: macros in Open MPI. */
FUNCTION(MPI_Aint, MPI_Aint_add, (MPI_Aint base, MPI_Aint disp), MPI_Aint_add(base, disp))
FUNCTION(MPI_Aint, MPI_Aint_diff, (MPI_Aint to, MPI_Aint from), MPI_Aint_diff(to, from))

/* Handles as Fortran integers: macros in MPICH. */
#define CONVERT(type, handle)                                                     \
  FUNCTION(MPI_Fint, MPI_##handle##_c2f, (type value), MPI_##handle##_c2f(value)) \
  FUNCTION(type, MPI_##handle##_f2c, (MPI_Fint value), MPI_##handle##_f2c(value))
CONVERT(MPI_Comm, Comm)
CONVERT(MPI_Datatype, Type)
CONVERT(MPI_Errhandler, Errhandler)
CONVERT(MPI_File, File)
CONVERT(MPI_Group, Group)
CONVERT(MPI_Info, Info)
CONVERT(MPI_Message, Message)
CONVERT(MPI_Op, Op)
CONVERT(MPI_Request, Request)
CONVERT(MPI_Win, Win)
#ifdef MPI_SESSION_NULL
CONVERT(MPI_Session, Session)
#endif

#undef CONSTANT
#undef FUNCTION
#undef CONVERT

#endif
