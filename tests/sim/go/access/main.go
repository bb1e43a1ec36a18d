// Disables the relocation of a machine, tries to relocate it, enables it again and relocates it, with govmomi's own
// calls, and prints what it saw as one line of JSON. The host is named as for the program beside this one.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"../host"
)

const method = "RelocateVM_Task"

type seen struct {
	Busy     bool     `json:"busy"`
	Disabled []string `json:"disabled"`
	Source   string   `json:"source"`
	Other    []string `json:"other"`
	After    []string `json:"after"`
	File     string   `json:"file"`
	Has      []bool   `json:"has"`
}

func main() {
	name := flag.String("vm", "vm1", "the machine")
	source := flag.String("source", "govmomi", "under what name to disable")
	target := flag.String("datastore", "", "where to relocate it; nothing is relocated without")
	keep := flag.Bool("keep", false, "leave it disabled")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out seen
	if err := use(ctx, *name, *source, *target, *keep, &out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		os.Exit(1)
	}
}

func disabled(ctx context.Context, c *govmomi.Client, vm *object.VirtualMachine) ([]string, error) {
	var found mo.VirtualMachine
	err := property.DefaultCollector(c.Client).RetrieveOne(ctx, vm.Reference(), []string{"disabledMethod"}, &found)
	return found.DisabledMethod, err
}

func relocate(ctx context.Context, vm *object.VirtualMachine, store types.ManagedObjectReference) error {
	task, err := vm.Relocate(ctx, types.VirtualMachineRelocateSpec{Datastore: &store}, types.VirtualMachineMovePriorityDefaultPriority)
	if err != nil {
		return err
	}
	return task.Wait(ctx)
}

func use(ctx context.Context, name, source, target string, keep bool, out *seen) error {
	c, err := host.Login(ctx)
	if err != nil {
		return err
	}
	finder := find.NewFinder(c.Client, true)
	center, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return err
	}
	finder.SetDatacenter(center)
	vm, err := finder.VirtualMachine(ctx, name)
	if err != nil {
		return err
	}
	manager := object.NewAuthorizationManager(c.Client)
	entities := []types.ManagedObjectReference{vm.Reference()}
	request := []object.DisabledMethodRequest{{Method: method}}
	if err = manager.DisableMethods(ctx, entities, request, source); err != nil {
		if soap.IsSoapFault(err) {
			_, out.Busy = soap.ToSoapFault(err).VimFault().(types.TaskInProgress)
		}
		if out.Busy {
			return nil
		}
		return fmt.Errorf("disable: %w", err)
	}
	if out.Disabled, err = disabled(ctx, c, vm); err != nil {
		return err
	}
	if keep {
		return c.Logout(ctx)
	}
	return move(ctx, c, finder, vm, source, target, out)
}

func move(ctx context.Context, c *govmomi.Client, finder *find.Finder, vm *object.VirtualMachine, source, target string, out *seen) error {
	store, err := finder.Datastore(ctx, target)
	if err != nil {
		return err
	}
	err = relocate(ctx, vm, store.Reference())
	if !soap.IsSoapFault(err) {
		return fmt.Errorf("relocated although disabled: %v", err)
	}
	fault, ok := soap.ToSoapFault(err).VimFault().(types.MethodDisabled)
	if !ok {
		return fmt.Errorf("another fault: %w", err)
	}
	out.Source = fault.Source
	manager := object.NewAuthorizationManager(c.Client)
	entities := []types.ManagedObjectReference{vm.Reference()}
	if err = manager.EnableMethods(ctx, entities, []string{method}, "nobody"); err != nil {
		return fmt.Errorf("enable for another: %w", err)
	}
	if out.Other, err = disabled(ctx, c, vm); err != nil {
		return err
	}
	if err = manager.EnableMethods(ctx, entities, []string{method}, source); err != nil {
		return fmt.Errorf("enable: %w", err)
	}
	if out.After, err = disabled(ctx, c, vm); err != nil {
		return err
	}
	if err = relocate(ctx, vm, store.Reference()); err != nil {
		return fmt.Errorf("relocate: %w", err)
	}
	devices, err := vm.Device(ctx)
	if err != nil {
		return err
	}
	disks := devices.SelectByType((*types.VirtualDisk)(nil))
	out.File = disks[0].GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo).FileName
	user, err := c.SessionManager.UserSession(ctx)
	if err != nil {
		return err
	}
	privileges := []string{"Global.DisableMethods", "Global.EnableMethods"}
	out.Has, err = manager.HasPrivilegeOnEntity(ctx, vm.Reference(), user.Key, privileges)
	return err
}
